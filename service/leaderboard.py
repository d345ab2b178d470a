"""The ranking: succeeded evaluations of this service and published results, one row type, nothing kept beside.

A screen is an estimate, and an evaluation that stopped early has an upper bound: neither is ranked.
"""

from collections import Counter
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field
from sqlalchemy import ColumnElement, Engine, and_, select
from sqlalchemy.orm import aliased

from dkl.architectures import show_model
from dkl.catalog import RECIPES, Named
from dkl.datasets import show_name
from dkl.documents import Norm, show_pixels
from dkl.protocols import Evaluate, Policy, show_protocol
from dkl.recipes import Recipe, Train
from service.db import Job, reading
from service.jobs import RefusedError
from service.published import changes, entry_of, judged_as_published

Sort = Literal["robust_accuracy", "-robust_accuracy", "clean_accuracy", "-clean_accuracy", "name", "-name"]


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


class Question(BaseModel):
    """What a reader may ask for, as query parameters."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    dataset: str | None = None
    norm: Norm | None = None
    eps: Annotated[float, Field(gt=0)] | None = None
    sort: Sort = "-robust_accuracy"
    """A column; with a minus in front from high to low."""
    search: Annotated[str, Field(max_length=100)] = ""
    """Looked for in names, architectures and suites."""


class Leaderboard(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    boards: list[Board]
    """Every board that has rows; the busiest first."""
    board: Board | None
    """The one whose rows follow; absent where no board matches."""
    rows: list[Row]


def find(db: Engine, question: Question) -> Leaderboard:
    """The busiest board that fits the question, with its rows."""
    boards = _boards(db)
    for board in boards:
        if (
            question.dataset in {None, board.dataset}
            and question.norm in {None, board.norm}
            and (question.eps is None or abs(question.eps - board.eps) < 1e-9)
        ):
            return Leaderboard(boards=boards, board=board, rows=_rows(db, board, question.sort, question.search))
    return Leaderboard(boards=boards, board=None, rows=[])


def _boards(db: Engine) -> list[Board]:
    query = select(Job.dataset, Job.norm, Job.eps).where(_ranked())
    with reading(db) as session:
        measured = [Board(dataset=d, norm=n, eps=e) for d, n, e in session.execute(query)]
    return [board for board, _ in Counter([*measured, *map(_board_of, _published())]).most_common()]


def why_unranked(job: Job) -> str | None:
    """Why a succeeded evaluation is on no board, in a sentence; None where it is on one."""
    if job.recipe.get("policy") == "screen":
        return "Not ranked: a screen is an estimate."
    if (job.result or {}).get("stopped_early"):
        return "Not ranked: it stopped early, and has an upper bound only."
    return None


def _ranked() -> ColumnElement[bool]:
    """The same as a condition of a query."""
    return and_(
        Job.kind == "evaluate",
        Job.status == "succeeded",
        Job.recipe["policy"].as_string().is_distinct_from("screen"),
        Job.result["stopped_early"].as_boolean().is_not(True),
    )


def stop_outside_top(db: Engine, recipe: Recipe, k: int) -> Evaluate:
    """`recipe`, stopping as soon as its model cannot be among the best `k` of its board as the board is now.

    An equal robust accuracy shares the rank, so only less than the k-th best stops. RefusedError where `recipe`
    is no evaluation, or says itself when to stop.
    """
    if not isinstance(recipe, Evaluate):
        unranked = "training" if isinstance(recipe, Train) else "accuracy under corruptions"
        raise RefusedError(
            f"top_k: {unranked} is not ranked; leave it out, and give it with the model's evaluation under attack"
        )
    if recipe.stop_below is not None:
        raise RefusedError(f"top_k: the recipe has stop_below {recipe.stop_below:g} already; give one of the two")
    board = Board(dataset=recipe.dataset, norm=recipe.threat.norm, eps=recipe.threat.eps)
    best = _rows(db, board, "-robust_accuracy", "")
    return recipe.model_copy(update={"stop_below": best[k - 1].robust_accuracy}) if len(best) >= k else recipe


def _rows(db: Engine, board: Board, sort: Sort, search: str) -> list[Row]:
    found = [*_measured(db, board), *(row for row in _published() if _board_of(row) == board)]
    rank: dict[float, int] = {}
    for place, row in enumerate(sorted(found, key=lambda row: -row.robust_accuracy), start=1):
        rank.setdefault(row.robust_accuracy, place)
    ranked = [row.model_copy(update={"rank": rank[row.robust_accuracy]}) for row in found]
    needle = search.casefold().strip()
    kept = [r for r in ranked if needle in f"{r.name} {r.architecture} {r.suite} {r.source}".casefold()]
    return sorted(kept, key=lambda row: getattr(row, sort.removeprefix("-")), reverse=sort.startswith("-"))


def _board_of(row: Row) -> Board:
    return Board(dataset=row.dataset, norm=row.norm, eps=row.eps)


def _measured(db: Engine, board: Board) -> list[Row]:
    parent = aliased(Job)
    query = (
        select(Job, parent)
        .outerjoin(parent, Job.parent_id == parent.id)
        .where(_ranked())
        .where(Job.dataset == board.dataset, Job.norm == board.norm, Job.eps == board.eps)
    )
    with reading(db) as session:
        return [_measured_row(job, training) for job, training in session.execute(query)]


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


def _published() -> list[Row]:
    return [_published_row(name, entry) for name, entry in RECIPES.items() if entry.published]


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
