"""The ranking: succeeded evaluations of this service and published results, nothing kept beside.

A screen is an estimate, and an evaluation that stopped early has an upper bound: neither is ranked.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from sqlalchemy import Engine

from dkl.protocols import Evaluate
from dkl.recipes import Recipe
from service.jobs import RefusedError
from service.reported import renamed
from service.rows import Board, BoardThreat, Row
from service.standings import Standing, Standings, standings

Sort = Literal[
    "best_known_accuracy", "-best_known_accuracy", "robust_accuracy", "-robust_accuracy",
    "clean_accuracy", "-clean_accuracy", "name", "-name", "unreliable", "-unreliable", "extra_data", "-extra_data",
    "architecture", "-architecture", "year", "-year", "suite", "-suite", "images", "-images", "source", "-source",
    "engine", "-engine", "finished_at", "-finished_at",
]  # fmt: skip


def _read_fraction(value: object) -> object:
    if not isinstance(value, str) or "/" not in value:
        return value
    over, _, under = value.partition("/")
    try:
        return float(over) / float(under)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"write a number or a fraction such as 8/255, not {value!r}") from None


class Question(BaseModel):
    """What a reader may ask for, as query parameters; an empty one is as good as none."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    dataset: str | None = None
    threat_model: BoardThreat | None = None
    eps: Annotated[float, BeforeValidator(_read_fraction), Field(gt=0)] | None = None
    """In pixels: 0.5, or a fraction such as 8/255."""
    sort: Sort = "-best_known_accuracy"
    """A column; with a minus in front from high to low."""
    search: Annotated[str, Field(max_length=100)] = ""
    """Looked for in names, papers, authors, venues, architectures, suites and engines."""
    source: Literal["measured", "published"] | None = None
    architecture: Annotated[str, Field(max_length=100)] = ""
    """Rows whose architecture contains it."""
    extra_data: bool | None = None
    """Only rows of which it is known that more than the data set was learnt from, or that not."""
    min_images: Annotated[int, Field(ge=1, le=10**9)] | None = None
    """Only rows of which it is known that so many test images are behind them."""
    standard: bool = False
    """Only the protocol that RobustBench's numbers are of: AutoAttack standard, or all common corruptions."""
    reliable: bool = False
    """Without rows that AutoAttack's own checks found potentially unreliable."""
    page: Annotated[int, Field(ge=1, le=10**9)] = 1
    """Which rows, from 1; beyond the last page there are none."""
    limit: Annotated[int, Field(ge=1, le=1000)] = 50
    """Rows of a page."""

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, asked: Any) -> Any:
        return {name: value for name, value in asked.items() if value != ""} if isinstance(asked, dict) else asked


class Leaderboard(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    boards: list[Board]
    """Every board that has rows; the busiest first."""
    board: Board | None
    """The one whose rows follow; absent where no board matches."""
    rows: list[Row]
    """Those of the page that was asked for."""
    total: int
    """Rows that match, on all pages together."""
    pages: int


class Found(NamedTuple):
    """The board that a question is about, and its rows that match, none of them made yet."""

    board: Board
    standing: Standing
    places: Sequence[int]
    """Of the matching rows, in the order that was asked for."""


def search(known: Standings, question: Question) -> Found | None:
    """The busiest board that fits the question, and what matches there; None where no board fits."""
    board = next((board for board in known.boards if _fits(board, question)), None)
    if board is None:
        return None
    standing = known.of(board)
    return Found(board, standing, _matching(standing, question))


def find(db: Engine, question: Question) -> Leaderboard:
    """The busiest board that fits the question, with a page of its rows."""
    known = standings(db)
    found = search(known, question)
    if found is None:
        return Leaderboard(boards=known.boards, board=None, rows=[], total=0, pages=0)
    first = (question.page - 1) * question.limit
    return Leaderboard(
        boards=known.boards,
        board=found.board,
        rows=[found.standing.shown(place) for place in found.places[first : first + question.limit]],
        total=len(found.places),
        pages=-(-len(found.places) // question.limit),
    )


def find_all(db: Engine, question: Question) -> list[Row]:
    """The rows of every page."""
    found = search(standings(db), question)
    return [found.standing.shown(place) for place in found.places] if found else []


def is_standard(row: Row) -> bool:
    """Whether the suite is RobustBench's protocol; every ranked row of common corruptions is."""
    return row.board.eps is None or row.suite in {"AutoAttack standard", "AutoAttack standard, by pyautoattack"}


def _fits(board: Board, question: Question) -> bool:
    return (
        question.dataset in {None, board.dataset}
        and question.threat_model in {None, board.threat_model}
        and (question.eps is None or (board.eps is not None and abs(question.eps - board.eps) < 1e-9))
    )


def _matching(standing: Standing, question: Question) -> Sequence[int]:
    order, tests = standing.order(question.sort), _tests(standing, question)
    return [place for place in order if all(test(place) for test in tests)] if tests else order


def _tests(standing: Standing, asked: Question) -> list[Callable[[int], bool]]:
    """What a place has to pass."""
    rows, tests = standing.rows, list[Callable[[int], bool]]()
    if needle := asked.search.casefold().strip():
        texts = standing.texts
        tests.append(lambda place: needle in texts[place])
    if part := asked.architecture.casefold().strip():
        tests.append(lambda place: part in rows[place].architecture.casefold())
    if asked.source is not None:
        tests.append(lambda place: rows[place].source == asked.source)
    if asked.extra_data is not None:
        tests.append(lambda place: rows[place].extra_data is asked.extra_data)
    if (least := asked.min_images) is not None:
        tests.append(lambda place: (rows[place].images or 0) >= least)
    if asked.standard:
        tests.append(lambda place: is_standard(rows[place]))
    if asked.reliable:
        tests.append(lambda place: not rows[place].unreliable)
    return tests


class NothingThereError(LookupError):
    """No board, or none of its rows, fits what was asked; the message says what to do."""


class UnknownEntryError(LookupError):
    """No board has this entry; the message says where to look."""


def entry(db: Engine, name: str) -> Row:
    """The row of this name with its rank; UnknownEntryError where there is none."""
    row = standings(db).find(name) or standings(db).find(renamed(db, name))
    if row is None:
        raise UnknownEntryError(f"no leaderboard has an entry {name!r}; find one on the leaderboard")
    return row


def stop_outside_top(db: Engine, recipe: Recipe, k: int) -> Evaluate:
    """`recipe`, stopping as soon as its model cannot be among the best `k` of its board as the board is now.

    An equal robust accuracy shares the rank, so only less than the k-th best stops. RefusedError where `recipe`
    is no evaluation, or says itself when to stop.
    """
    if not isinstance(recipe, Evaluate):
        others = {"train": "training", "distill": "distilling", "import": "an import"}
        unranked = others.get(recipe.kind, "accuracy under corruptions")
        raise RefusedError(
            f"top_k: {unranked} is not ranked; leave it out, and give it with the model's evaluation under attack"
        )
    if recipe.stop_below is not None:
        raise RefusedError(f"top_k: the recipe has stop_below {recipe.stop_below:g} already; give one of the two")
    board = Board(dataset=recipe.dataset, threat_model=recipe.threat.norm, eps=recipe.threat.eps)
    best = [row.best_known_accuracy for row in standings(db).of(board).rows]
    return recipe.model_copy(update={"stop_below": best[k - 1]}) if len(best) >= k else recipe
