"""An evaluation as one of any number of workers: take a chunk, judge it, put the verdicts where all can read them.

Which chunks there are follows from the verdicts that are known (dkl/judging.py), so that all workers come to the
same; the ledger only says who has which. Whoever finds everything known finishes the job.
"""

import logging
import time
from collections.abc import Generator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sqlalchemy import Engine

from dkl.events import Finished, Progress
from dkl.protocols import Evaluate
from service import claims, files, jobs, waiting
from service.artifacts import MissingFileError, Store
from service.waiting import Offer
from workers.patience import patiently

if TYPE_CHECKING:  # these import torch
    from dkl.sources import Fetch
    from dkl.units import Judged, Unit

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 0.5
"""How often a worker with nothing to take looks for the others' verdicts."""

Step = claims.Fact | Progress | Literal["idle"]


class Left:
    """The worker left the evaluation to the others, for a job that waits."""


def evaluate_together(
    recipe: Evaluate,
    claim: claims.Claim,
    *,
    workdir: Path,
    device: str,
    data_dir: Path,
    fetch: "Fetch",
    db: Engine,
    store: Store,
    offer: Offer,
) -> Generator[Step, None, Finished | Left]:
    """Help with the evaluation until it is over or another job needs this worker.

    Yields progress, and "idle" while others have all chunks; stop by closing.
    """
    from dkl import engine  # imports torch
    from dkl.shelf import write_judged

    workdir.mkdir(parents=True, exist_ok=True)
    done = patiently(partial(claims.chunks_done, db, claim))
    patiently(partial(claims.append, db, claim, engine.started(recipe, device, resumed=bool(done))))
    evaluation = engine.open_evaluation(recipe, device=device, data_dir=data_dir, fetch=fetch)
    subject = {"recipe": evaluation.fingerprint, "checkpoint": evaluation.checkpoint}
    told = 0
    while True:
        done = patiently(partial(claims.chunks_done, db, claim))
        units = evaluation.advance(partial(_read, claim, db, store, done, subject))
        if evaluation.events[told:]:
            patiently(partial(claims.append, db, claim, *evaluation.events[told:]))
            told = len(evaluation.events)
        if not units:
            return Finished(result=evaluation.result(workdir))
        parts = [(unit.stage, unit.batch) for unit in units]
        patiently(partial(claims.announce, db, claim, parts))
        mine = patiently(partial(claims.take_chunk, db, claim, parts))
        if mine is None:
            if patiently(partial(waiting.next_ready, db, offer)) and patiently(partial(claims.leave, db, claim)):
                return Left()
            yield "idle"
            time.sleep(_LOOK_SECONDS)
            continue
        ahead = sum(len(unit.rows) for unit in units if (unit.stage, unit.batch) in done)
        seats = len(patiently(partial(jobs.get, db, claim.job_id)).seats)
        with closing(evaluation.judge(units[parts.index(mine)], ahead=ahead, workers=seats)) as judging:
            judged = yield from judging
        found = workdir / f"found-{claim.attempt}.safetensors"
        write_judged(found, judged, **subject)
        sha256 = patiently(partial(files.keep, db, store, found, key_id=None))
        patiently(partial(claims.chunk_done, db, claim, mine, found_sha256=sha256))


def _read(
    claim: claims.Claim,
    db: Engine,
    store: Store,
    done: Mapping[claims.Part, str],
    subject: dict[str, str],
    unit: "Unit",
) -> "Judged | None":
    """The verdicts of `unit`, if they are known; damaged ones are given up, and judged again."""
    from dkl.shelf import read_judged

    part = (unit.stage, unit.batch)
    if (sha256 := done.get(part)) is None:
        return None
    try:
        return read_judged(patiently(partial(store.fetch, sha256)), unit, **subject)
    except (ValueError, MissingFileError) as error:
        if part == (0, 0) and any(stage > 0 for stage, _ in done):  # it decides the precision of all others
            raise ValueError(
                f"the stored verdicts that all others rest on are lost ({error}); run it again"
            ) from error
        _log.warning("the verdicts of chunk %s of job %s are lost: %s", part, claim.job_id, error)
        patiently(partial(claims.chunk_lost, db, claim, part, found_sha256=sha256))
        return None
