"""What can be ranked: succeeded evaluations of this service and published results, one row type.

A succeeded evaluation never changes and is never taken back, so a process remembers the rows that it has made, and
reads only the new ones: ten thousand rows cost seconds once, and milliseconds from then on.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from threading import Lock
from typing import Literal
from weakref import WeakKeyDictionary

from pydantic import BaseModel, ConfigDict, computed_field
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session, aliased, lazyload

from dkl.architectures import show_model
from dkl.catalog import RECIPES, Named
from dkl.datasets import show_name
from dkl.documents import Norm, show_pixels
from dkl.protocols import Policy, show_protocol
from dkl.recipes import Train
from service.db import reading
from service.published import changes, entry_of, judged_as_published
from service.tables import Job


class Board(BaseModel):
    """What one ranking is about; results of different boards are never ranked together."""

    model_config = ConfigDict(frozen=True)

    dataset: str
    norm: Norm
    eps: float

    @computed_field  # type: ignore[prop-decorator]
    @property
    def title(self) -> str:
        return f"{show_name(self.dataset)}, {self.norm}, eps {show_pixels(self.eps)}"


class Row(BaseModel):
    """One model on one board. Accuracies are fractions in [0, 1]."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    rank: int
    """By robust accuracy; equal accuracies share a rank."""
    name: str
    source: Literal["measured", "published"]
    """measured: by this service, from stored per-image flags; published: as its authors report it."""
    dataset: str
    norm: Norm
    eps: float
    architecture: str
    clean_accuracy: float
    robust_accuracy: float
    robust_interval: tuple[float, float] | None
    """95 % Wilson score interval; for measured rows."""
    published_robust_accuracy: float | None
    """What the paper reports for the recipe that trained the model; for measured rows whose model was trained by a
    published row's recipe, unchanged but for seed and speed, and judged within its threat model."""
    images: int | None
    """Test images behind the numbers; absent where the source does not say."""
    suite: str
    """What was done: "AutoAttack standard", "AutoAttack standard, audited", ..., "custom". Only the first one is
    RobustBench's protocol."""
    policy: Policy | None
    """How the suite was run; for measured rows."""
    engine: str | None
    """Who ran the attacks, with version; for measured rows."""
    job_id: str | None
    """The evaluation; for measured rows."""
    model_job_id: str | None
    """The training job whose model was judged, if one was."""
    citation: str | None
    url: str | None
    finished_at: float | None


def board_of(row: Row) -> Board:
    return Board(dataset=row.dataset, norm=row.norm, eps=row.eps)


# --- measured ---------------------------------------------------------------------------------------------

Boards = Mapping[Board, Sequence[Row]]
"""Rows without their ranks, which depend on all others."""


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
            boards.setdefault(board_of(row), []).append(row)
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
        rank=0,
        name=trained_as or _source_name(job) or f"{result['architecture']} {result['checkpoint_sha256'][:8]}",
        source="measured",
        dataset=job.dataset,
        norm=job.norm,
        eps=job.eps or 0.0,
        architecture=result["architecture"],
        clean_accuracy=result["clean_accuracy"],
        robust_accuracy=result["robust_accuracy"],
        robust_interval=result["robust_interval"],
        published_robust_accuracy=_reported(job, training),
        images=result["images"],
        suite=show_suite(job),
        policy=job.recipe.get("policy", "exact"),
        engine=result["engine"],
        job_id=job.id,
        model_job_id=job.parent_id,
        citation=None,
        url=None,
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


# --- published --------------------------------------------------------------------------------------------


@cache
def published() -> Boards:
    """Every row that somebody reports."""
    boards: dict[Board, list[Row]] = {}
    for name, entry in RECIPES.items():
        if entry.published:
            row = _published_row(name, entry)
            boards.setdefault(board_of(row), []).append(row)
    return boards


def _published_row(name: str, entry: Named) -> Row:
    recipe, published = entry.recipe, entry.published
    assert isinstance(recipe, Train)
    assert recipe.threat is not None
    assert published is not None
    return Row(
        rank=0,
        name=name,
        source="published",
        dataset=recipe.dataset,
        norm=recipe.threat.norm,
        eps=recipe.threat.eps if published.eps is None else published.eps,
        architecture=show_model(recipe.model),
        clean_accuracy=published.clean_accuracy,
        robust_accuracy=published.robust_accuracy,
        robust_interval=None,
        published_robust_accuracy=None,
        images=None,
        suite="AutoAttack standard",
        policy=None,
        engine=None,
        job_id=None,
        model_job_id=None,
        citation=published.source,
        url=published.url,
        finished_at=None,
    )
