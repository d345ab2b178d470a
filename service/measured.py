"""What this service measured, as rows of boards.

A succeeded evaluation never changes and is never taken back, so a process remembers the rows that it has made, and
reads only the new ones: ten thousand rows cost seconds once, and milliseconds from then on.
"""

import base64
from collections.abc import Iterator, Mapping, Sequence
from threading import Lock
from typing import NamedTuple
from weakref import WeakKeyDictionary

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session, aliased, lazyload

from dkl.protocols import CORRUPTIONS, PUBLISHED_CORRUPTIONS, show_protocol
from service.db import reading
from service.published import changes
from service.reported import published_of
from service.rows import Board, Boards, Row
from service.significance import Verdicts
from service.tables import Job


class Measured(NamedTuple):
    boards: Boards
    """The oldest row of a board first. A board that changes gets another list."""
    verdicts: Mapping[str, Verdicts]
    """By entry, of those whose results have flags per image."""


def measured(db: Engine) -> Boards:
    """Every row that this service measured, the oldest first."""
    return remembered(db).boards


def remembered(db: Engine) -> Measured:
    """What this service measured, row by row and image by image; the same object until something is added."""
    with _lock:
        memory = _memories.setdefault(db, _Memory())
    return memory.look(db)


class _Memory:
    """What was measured in one database."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._succeeded = -1
        self._known: set[str] = set()
        """The evaluations that were read, on a board or not."""
        self._measured = Measured({}, {})

    def look(self, db: Engine) -> Measured:
        with self._lock, reading(db) as session:
            # The number before the rows: what succeeds in between is found at the next look.
            succeeded = session.scalar(select(func.count()).where(Job.status == "succeeded")) or 0
            if succeeded != self._succeeded:
                self._read(session)
                self._succeeded = succeeded
            return self._measured

    def _read(self, session: Session) -> None:
        ended = select(Job.id).where(Job.kind.in_(_JUDGING), Job.status == "succeeded")
        there = session.scalars(ended.order_by(Job.finished_at, Job.id)).all()
        if not self._known <= set(there):  # somebody has deleted rows by hand
            self._known, self._measured = set(), Measured({}, {})
        added: dict[Board, list[Row]] = {}
        verdicts = dict(self._measured.verdicts)
        for row, flags in _rows(session, [job_id for job_id in there if job_id not in self._known]):
            added.setdefault(row.board, []).append(row)
            if flags is not None:
                verdicts[row.entry] = flags
        if added:
            before = self._measured.boards
            grown = {board: [*before.get(board, ()), *rows] for board, rows in added.items()}
            self._measured = Measured({**before, **grown}, verdicts)
        self._known = set(there)


_lock = Lock()
_memories: WeakKeyDictionary[Engine, _Memory] = WeakKeyDictionary()
_JUDGING = ("evaluate", "corruptions")


def _rows(session: Session, job_ids: Sequence[str]) -> Iterator[tuple[Row, Verdicts | None]]:
    parent = aliased(Job)
    pairs = select(Job, parent).outerjoin(parent, Job.parent_id == parent.id).order_by(Job.finished_at, Job.id)
    pairs = pairs.options(lazyload("*"))
    for start in range(0, len(job_ids), 500):
        some = job_ids[start : start + 500]
        for job, training in session.execute(pairs.where(Job.id.in_(some))):
            if why_unranked(job) is None:
                corrupted = job.kind == "corruptions"
                yield (_corruptions_row if corrupted else _attacked_row)(job, training), _verdicts(job)
        session.expunge_all()  # a row is a small part of the two jobs that it is made of


def why_unranked(job: Job) -> str | None:
    """Why a succeeded evaluation is on no board, in a sentence; None where it is on one."""
    if job.kind == "corruptions":
        return _why_not_standard(job)
    if job.recipe.get("policy") == "screen":
        return "Not ranked: a screen is an estimate."
    if (job.result or {}).get("stopped_early"):
        return "Not ranked: it stopped early, and has an upper bound only."
    return None


def _why_not_standard(job: Job) -> str | None:
    """Of common corruptions: boards are about all of them at every severity, in the published images if any."""
    recipe, title = job.recipe, PUBLISHED_CORRUPTIONS.get(job.dataset)
    if set(recipe["corruptions"]) != set(CORRUPTIONS) or len(recipe["severities"]) != 5:
        return f"Not ranked: the board is about all {len(CORRUPTIONS)} corruptions at all 5 severities."
    if title and recipe.get("source") == "generated":
        return f"Not ranked: its corrupted images were generated here, and the board is about {title}."
    return None


def _attacked_row(job: Job, training: Job | None) -> Row:
    result, paper = job.result or {}, published_of(job, training)
    return Row(
        entry=job.id,
        name=_model_name(job, training),
        source="measured",
        board=Board(dataset=job.dataset, threat_model=job.norm, eps=job.eps),
        eps=job.eps,
        architecture=result["architecture"],
        clean_accuracy=result["clean_accuracy"],
        robust_accuracy=result["robust_accuracy"],
        best_known_accuracy=result["robust_accuracy"],
        clean_interval=result.get("clean_interval"),
        robust_interval=result["robust_interval"],
        images=result["images"],
        suite=show_suite(job),
        unreliable=bool(result.get("warnings")),
        extra_data=paper.extra_data if paper else None,
        published_accuracy=paper.robust_accuracy if paper else None,
        published_entry=paper.entry if paper else None,
        note=_note(training),
        policy=job.recipe.get("policy", "exact"),
        engine=result["engine"],
        job_id=job.id,
        model_job_id=job.parent_id,
        finished_at=job.finished_at,
    )


def _corruptions_row(job: Job, training: Job | None) -> Row:
    result, paper = job.result or {}, published_of(job, training)
    return Row(
        entry=job.id,
        name=_model_name(job, training),
        source="measured",
        board=Board(dataset=job.dataset, threat_model="corruptions", eps=None),
        eps=None,
        architecture=result["architecture"],
        clean_accuracy=result["clean_accuracy"],
        robust_accuracy=result["corruption_accuracy"],
        best_known_accuracy=result["corruption_accuracy"],
        clean_interval=result["clean_interval"],
        robust_interval=result["corruption_interval"],
        images=result["images"],
        suite=_show_corruptions(job),
        note=_note(training),
        extra_data=paper.extra_data if paper else None,
        published_accuracy=paper.robust_accuracy if paper else None,
        published_entry=paper.entry if paper else None,
        job_id=job.id,
        model_job_id=job.parent_id,
        finished_at=job.finished_at,
    )


def _note(training: Job | None) -> str | None:
    """What a row that bears the name of a recipe must not be silent about."""
    changed = changes(training) if training else []
    return f"The recipe {training.name}, changed in: {', '.join(changed)}." if training and changed else None


def _verdicts(job: Job) -> Verdicts | None:
    """Of an evaluation whose result has flags; older ones, and those of common corruptions, have none."""
    result = job.result or {}
    flags = result.get("flags")
    if not flags:
        return None
    return Verdicts(flags["data_sha256"], result["images"], base64.b64decode(flags["robust"]))


def show_suite(job: Job) -> str:
    """What an evaluation does, as tables name it: "AutoAttack standard, audited", "custom, by pyautoattack"."""
    recipe = job.recipe
    protocol = (job.result or {}).get("protocol") or show_protocol(recipe["suite"], recipe.get("policy", "exact"))
    # Before recipes named an engine, it was the reference.
    return f"{protocol}, by pyautoattack" if recipe.get("engine", "pyautoattack") == "pyautoattack" else protocol


def _show_corruptions(job: Job) -> str:
    """Where they were published, as others name the protocol; else who made them."""
    protocol, source = f"common corruptions, {len(CORRUPTIONS)} x 5", (job.result or {})["source"]
    return protocol if source == PUBLISHED_CORRUPTIONS.get(job.dataset) else f"{protocol}, {source}"


def _model_name(job: Job, training: Job | None) -> str:
    """What trained the model, or where it is from, or else its architecture and the beginning of its sha256."""
    trained_as, result = training.name if training else None, job.result or {}
    return trained_as or _source_name(job) or f"{result['architecture']} {result['checkpoint_sha256'][:8]}"


def _source_name(job: Job) -> str | None:
    """The name of a model of the zoo, of timm or of torchvision."""
    source = job.recipe["model"]
    if "zoo" in source:
        return str(source["zoo"]).rpartition("/")[2]
    name: str | None = source.get("timm") or source.get("torchvision")
    return name
