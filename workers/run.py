"""run_next(): claim what this worker should do now, run it with the library, write down what it says.

The same for Celery and embedded workers.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial
from pathlib import Path

from sqlalchemy import Engine
from structlog.contextvars import bound_contextvars

from dkl.events import Event, Finished, Progress
from dkl.protocols import Checkpoint, Evaluate, JobResult
from service import claims, files, waiting, workdirs
from service.artifacts import Store, store_for
from service.queue import ring
from service.registry import Description
from service.settings import Settings
from service.space import enough_space
from workers.heart import Heart
from workers.patience import patiently
from workers.together import Left, Step, evaluate_together
from workers.trouble import explains_itself, is_of_the_gpu, passes

_log = logging.getLogger(__name__)
_PROGRESS_SECONDS = 0.5
_TRIES = 20
"""Jobs that others may take while we look, before we look again later."""
_PAUSE_SECONDS = 15.0
"""Before a job that met a full disk or the like is tried again."""
_LEAVES = {
    "train": "model.safetensors",
    "distill": "model.safetensors",
    "import": "model.safetensors",
    "evaluate": "evidence.safetensors",
}
"""The file that a job of each kind leaves; one of corruptions leaves its result alone."""
_quiet_until = 0.0


class BrokenWorkerError(Exception):
    """This process should not run another job: start a fresh one."""


def halt_on_signals() -> threading.Event:
    """An event that SIGTERM sets: the running job stops after its current batch, checkpoints and is given back.

    Celery's parent process passes a shutdown on to the child as SIGQUIT where REMAP_SIGTERM says so.
    """
    halt = threading.Event()
    for sign in (signal.SIGTERM, signal.SIGQUIT):
        signal.signal(sign, lambda *_: halt.set())
    return halt


def run_next(*, worker: Description, settings: Settings, db: Engine, halt: threading.Event) -> bool:
    """Run the job that this worker should do now, to its end, or until it is canceled, lost to another worker, or
    `halt` is set. False where there is none. BrokenWorkerError where the GPU failed.
    """
    if (claim := _claim(worker, settings, db)) is None:
        return False
    _log.info("running job %s, attempt %d", claim.job_id, claim.attempt)
    try:
        with bound_contextvars(job_id=claim.job_id, attempt=claim.attempt), Heart(db, claim, settings) as heart:
            _run_claimed(claim, worker, settings, db, stop=lambda: halt.is_set() or heart.stop.is_set())
    except claims.ClaimLostError as error:
        _log.info("leaving job %s: %s", claim.job_id, error)
    finally:
        clear_abandoned(db, settings)
    patiently(partial(ring, db, settings))
    return True


def _claim(worker: Description, settings: Settings, db: Engine) -> claims.Claim | None:
    if not enough_space(settings):
        _say_full(settings)
        return None
    for _ in range(_TRIES):
        if (job_id := waiting.next_ready(db, worker.offer)) is None:
            break
        claim = claims.claim(
            db, job_id, worker=worker.name, lease_seconds=settings.lease_seconds, offer=worker.offer
        )
        if claim is not None:  # nobody was faster
            return claim
    return None


def _say_full(settings: Settings) -> None:
    """Once a minute: a log must not fill the rest of the disk."""
    global _quiet_until  # noqa: PLW0603  (a process has one log)
    if time.monotonic() >= _quiet_until:
        _quiet_until = time.monotonic() + 60
        _log.warning(
            "less than %d bytes are free in %s: taking no job", settings.min_free_bytes, settings.data_dir
        )


def _run_claimed(
    claim: claims.Claim, worker: Description, settings: Settings, db: Engine, stop: Callable[[], bool]
) -> None:
    store = store_for(settings)
    workdir = settings.workdir(claim.job_id)
    broken = False
    end: Callable[[], None]
    try:
        finished = _follow(claim, workdir, worker, settings, db, store, stop)
        if isinstance(finished, Left):
            return
        if finished and (name := _LEAVES.get(finished.result.kind)):  # the file before the result that names it
            patiently(partial(files.keep, db, store, workdir / name, key_id=claim.key_id))
    except claims.ClaimLostError:
        raise
    except Exception as error:
        broken = is_of_the_gpu(error)
        end = _ended_by(error, claim, settings, db)
    else:
        end = partial(claims.finish, db, claim, finished) if finished else partial(claims.stopped, db, claim)
    patiently(end)
    if broken:
        raise BrokenWorkerError(claim.job_id)


def _ended_by(error: Exception, claim: claims.Claim, settings: Settings, db: Engine) -> Callable[[], None]:
    """What to tell the ledger."""
    if passes(error):
        _log.warning("job %s had a setback: %s", claim.job_id, error)
        return partial(claims.setback, db, claim, f"{error}; it will resume", pause_seconds=_PAUSE_SECONDS)
    if is_of_the_gpu(error):
        _log.exception("the GPU failed under job %s", claim.job_id)
        reason = f"the GPU of worker {claim.worker} failed: {str(error).partition(chr(10))[0]}"
        return partial(claims.broken, db, claim, reason, max_losses=settings.max_losses)
    if explains_itself(error):
        _log.warning("job %s failed: %s", claim.job_id, error)
        return partial(claims.fail, db, claim, str(error))
    _log.exception("job %s failed", claim.job_id)
    reason = f"{type(error).__name__}: {error}; the worker's log has the traceback"
    return partial(claims.fail, db, claim, reason)


def _follow(
    claim: claims.Claim,
    workdir: Path,
    worker: Description,
    settings: Settings,
    db: Engine,
    store: Store,
    stop: Callable[[], bool],
) -> Finished | Left | None:
    """Run the recipe and write down its events; None where it was stopped before the end."""
    from dkl import engine  # imports torch

    def fetch(asked: JobResult | Checkpoint) -> Path:
        sha256 = claim.checkpoint or (asked.checkpoint if isinstance(asked, Checkpoint) else None)
        assert sha256 is not None  # the ledger knows it: of an earlier job, or named in the recipe
        return patiently(partial(store.fetch, sha256))

    device = engine.pick_device(settings.device)
    data_dir = settings.datasets_dir
    if isinstance(claim.recipe, Evaluate):
        steps = evaluate_together(
            claim.recipe,
            claim,
            workdir=workdir,
            device=device,
            data_dir=data_dir,
            fetch=fetch,
            db=db,
            store=store,
            offer=worker.offer,
        )
    else:
        steps = _alone(engine.run(claim.recipe, workdir, device=device, data_dir=data_dir, fetch=fetch))
    quiet_until = 0.0
    with closing(steps):
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                ended: Finished | Left = end.value
                return ended
            go_on = True
            if step != "idle" and not (isinstance(step, Progress) and time.monotonic() < quiet_until):
                go_on = patiently(partial(claims.append, db, claim, step))
                if isinstance(step, Progress):
                    quiet_until = time.monotonic() + _PROGRESS_SECONDS
            if stop() or not go_on:
                return None


def _alone(events: Generator[Event, None, None]) -> Generator[Step, None, Finished | Left]:
    """A job that one worker runs from beginning to end."""
    with closing(events):
        for event in events:
            if isinstance(event, Finished):
                return event
            yield event
    raise AssertionError("the engine ended without Finished")


def clear_abandoned(db: Engine, settings: Settings) -> None:
    """What jobs that are over left in this machine's work folder, wherever they ended: all that counts is in the
    ledger and the store."""
    for folder, _ in patiently(lambda: list(workdirs.abandoned(db, settings))):
        patiently(partial(workdirs.remove, db, settings, folder))


def worker_name() -> str:
    """Of a process that nobody gave one."""
    return f"{os.uname().nodename}/{os.getpid()}"
