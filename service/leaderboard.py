"""The ranking: succeeded evaluations of this service and published results, one row type, nothing kept beside."""

from collections import Counter
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field
from sqlalchemy import Engine, select
from sqlalchemy.orm import aliased

from dkl.catalog import RECIPES, Named
from dkl.datasets import show_name
from dkl.recipes import Norm, Train, show_model, show_pixels, show_suite
from service.db import Job, reading

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
    images: int | None
    """Test images behind the numbers; absent where the source does not say."""
    suite: str
    """"AutoAttack standard", ...; only this one is comparable with RobustBench."""
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
    query = select(Job.dataset, Job.norm, Job.eps).where(Job.kind == "evaluate", Job.status == "succeeded")
    with reading(db) as session:
        measured = [Board(dataset=d, norm=n, eps=e) for d, n, e in session.execute(query)]
    return [board for board, _ in Counter([*measured, *map(_board_of, _published())]).most_common()]


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
        select(Job, parent.name)
        .outerjoin(parent, Job.parent_id == parent.id)
        .where(Job.kind == "evaluate", Job.status == "succeeded")
        .where(Job.dataset == board.dataset, Job.norm == board.norm, Job.eps == board.eps)
    )
    with reading(db) as session:
        return [_measured_row(job, trained_as) for job, trained_as in session.execute(query)]


def _measured_row(job: Job, trained_as: str | None) -> Row:
    result = job.result or {}
    return Row(
        rank=0,
        name=trained_as or (f"{result['architecture']} {result['checkpoint_sha256'][:8]}"),
        source="measured",
        dataset=job.dataset,
        norm=job.norm,
        eps=job.eps or 0.0,
        architecture=result["architecture"],
        clean_accuracy=result["clean_accuracy"],
        robust_accuracy=result["robust_accuracy"],
        robust_interval=result["robust_interval"],
        images=result["images"],
        suite=show_suite(job.recipe["suite"]),
        job_id=job.id,
        model_job_id=job.parent_id,
        citation=None,
        url=None,
        finished_at=job.finished_at,
    )


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
        eps=recipe.threat.eps,
        architecture=show_model(recipe.model),
        clean_accuracy=published.clean_accuracy,
        robust_accuracy=published.robust_accuracy,
        robust_interval=None,
        images=None,
        suite="AutoAttack standard",
        job_id=None,
        model_job_id=None,
        citation=published.source,
        url=published.url,
        finished_at=None,
    )
