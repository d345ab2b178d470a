"""What this service measured, as rows of boards.

A succeeded evaluation never changes and is never taken back, so a process remembers the rows that it has made, and
reads only the new ones: ten thousand rows cost seconds once, and milliseconds from then on.
"""

from collections.abc import Iterator, Sequence
from threading import Lock
from weakref import WeakKeyDictionary

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session, aliased, lazyload

from dkl.protocols import show_protocol
from service.db import reading
from service.published import changes, entry_of, judged_as_published
from service.rows import Board, Boards, Row
from service.tables import Job


def measured(db: Engine) -> Boards:
    """Every row that this service measured, the oldest first."""
    with _lock:
        memory = _memories.setdefault(db, _Memory())
    return memory.look(db)


class _Memory:
    """The measured rows of one database."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._succeeded = -1
        self._known: set[str] = set()
        """The evaluations that were read, on a board or not."""
        self._boards: Boards = {}

    def look(self, db: Engine) -> Boards:
        with self._lock, reading(db) as session:
            # The number before the rows: what succeeds in between is found at the next look.
            succeeded = session.scalar(select(func.count()).where(Job.status == "succeeded")) or 0
            if succeeded != self._succeeded:
                self._read(session)
                self._succeeded = succeeded
            return self._boards

    def _read(self, session: Session) -> None:
        ended = select(Job.id).where(Job.kind == "evaluate", Job.status == "succeeded")
        there = session.scalars(ended.order_by(Job.finished_at, Job.id)).all()
        if not self._known <= set(there):  # somebody has deleted rows by hand
            self._known, self._boards = set(), {}
        boards = {board: list(rows) for board, rows in self._boards.items()}
        for row in _rows(session, [job_id for job_id in there if job_id not in self._known]):
            boards.setdefault(row.board, []).append(row)
        self._boards, self._known = boards, set(there)


_lock = Lock()
_memories: WeakKeyDictionary[Engine, _Memory] = WeakKeyDictionary()


def _rows(session: Session, job_ids: Sequence[str]) -> Iterator[Row]:
    parent = aliased(Job)
    pairs = select(Job, parent).outerjoin(parent, Job.parent_id == parent.id).order_by(Job.finished_at, Job.id)
    pairs = pairs.options(lazyload(Job.seats), lazyload(parent.seats))
    for start in range(0, len(job_ids), 500):
        some = job_ids[start : start + 500]
        for job, training in session.execute(pairs.where(Job.id.in_(some))):
            if why_unranked(job) is None:
                yield _measured_row(job, training)
        session.expunge_all()  # a row is a small part of the two jobs that it is made of


def why_unranked(job: Job) -> str | None:
    """Why a succeeded evaluation is on no board, in a sentence; None where it is on one."""
    if job.recipe.get("policy") == "screen":
        return "Not ranked: a screen is an estimate."
    if (job.result or {}).get("stopped_early"):
        return "Not ranked: it stopped early, and has an upper bound only."
    return None


def _measured_row(job: Job, training: Job | None) -> Row:
    result = job.result or {}
    trained_as = training.name if training else None
    return Row(
        entry=job.id,
        name=trained_as or _source_name(job) or f"{result['architecture']} {result['checkpoint_sha256'][:8]}",
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
        published_accuracy=_reported(job, training),
        policy=job.recipe.get("policy", "exact"),
        engine=result["engine"],
        job_id=job.id,
        model_job_id=job.parent_id,
        finished_at=job.finished_at,
    )


def _reported(job: Job, training: Job | None) -> float | None:
    """What the paper reports for this training, if it was run as published and is judged in the same ball."""
    entry = entry_of(training) if training else None
    if training is None or entry is None or entry.published is None:
        return None
    same_question = judged_as_published(training, job) and not changes(entry, training.recipe)
    return entry.published.robust_accuracy if same_question else None


def show_suite(job: Job) -> str:
    """What an evaluation does, as tables name it: "AutoAttack standard, audited", "custom, by pyautoattack"."""
    recipe = job.recipe
    protocol = (job.result or {}).get("protocol") or show_protocol(recipe["suite"], recipe.get("policy", "exact"))
    # Before recipes named an engine, it was the reference.
    return f"{protocol}, by pyautoattack" if recipe.get("engine", "pyautoattack") == "pyautoattack" else protocol


def _source_name(job: Job) -> str | None:
    """A zoo model's or a timm model's name."""
    source = job.recipe["model"]
    return str(source["zoo"]).rpartition("/")[2] if "zoo" in source else source.get("timm")
