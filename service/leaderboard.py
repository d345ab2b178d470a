"""The ranking: succeeded evaluations of this service and published results, nothing kept beside.

A screen is an estimate, and an evaluation that stopped early has an upper bound: neither is ranked.
"""

from bisect import bisect_right
from collections import Counter
from operator import attrgetter
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Engine

from dkl.protocols import Evaluate
from dkl.recipes import Recipe
from service.jobs import RefusedError
from service.measured import measured
from service.reported import reported
from service.rows import Board, BoardThreat, Row

Sort = Literal[
    "best_known_accuracy", "-best_known_accuracy", "robust_accuracy", "-robust_accuracy",
    "clean_accuracy", "-clean_accuracy", "name", "-name",
]  # fmt: skip


class Question(BaseModel):
    """What a reader may ask for, as query parameters."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    dataset: str | None = None
    threat_model: BoardThreat | None = None
    eps: Annotated[float, Field(gt=0)] | None = None
    sort: Sort = "-best_known_accuracy"
    """A column; with a minus in front from high to low."""
    search: Annotated[str, Field(max_length=100)] = ""
    """Looked for in names, architectures and suites."""
    page: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """Which rows, from 1; beyond the last page there are none."""
    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    """Rows of a page."""


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


def find(db: Engine, question: Question) -> Leaderboard:
    """The busiest board that fits the question, with a page of its rows."""
    here, there = measured(db), reported()
    sizes = Counter({board: len(rows) for board, rows in here.items()})
    sizes.update({board: len(rows) for board, rows in there.items()})
    boards = [board for board, _ in sizes.most_common()]
    for board in boards:
        if (
            question.dataset in {None, board.dataset}
            and question.threat_model in {None, board.threat_model}
            and (question.eps is None or (board.eps is not None and abs(question.eps - board.eps) < 1e-9))
        ):
            rows = [*here.get(board, ()), *there.get(board, ())]
            return Leaderboard(boards=boards, board=board, **_page(rows, question))
    return Leaderboard(boards=boards, board=None, rows=[], total=0, pages=0)


def _page(rows: list[Row], question: Question) -> dict[str, Any]:
    accuracies = sorted(row.best_known_accuracy for row in rows)
    if needle := question.search.casefold().strip():
        rows = [r for r in rows if needle in f"{r.name} {r.architecture} {r.suite} {r.source}".casefold()]
    rows.sort(key=attrgetter(question.sort.removeprefix("-")), reverse=question.sort.startswith("-"))
    first = (question.page - 1) * question.limit
    shown = rows[first : first + question.limit]
    return {
        "rows": [row.model_copy(update={"rank": _rank(row, accuracies)}) for row in shown],
        "total": len(rows),
        "pages": -(-len(rows) // question.limit),
    }


def _rank(row: Row, accuracies: list[float]) -> int:
    """One more than there are better ones; `accuracies` are all of the board's, ascending."""
    return len(accuracies) - bisect_right(accuracies, row.best_known_accuracy) + 1


class UnknownEntryError(LookupError):
    """No board has this entry; the message says where to look."""


def entry(db: Engine, name: str) -> Row:
    """The row of this name with its rank; UnknownEntryError where there is none."""
    here, there = measured(db), reported()
    for boards in (here, there):
        for board, rows in boards.items():
            for row in rows:
                if row.entry == name:
                    ranked = [*here.get(board, ()), *there.get(board, ())]
                    accuracies = sorted(other.best_known_accuracy for other in ranked)
                    return row.model_copy(update={"rank": _rank(row, accuracies)})
    raise UnknownEntryError(f"no leaderboard has an entry {name!r}; find one on the leaderboard")


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
    rows = [*measured(db).get(board, ()), *reported().get(board, ())]
    best = sorted((row.best_known_accuracy for row in rows), reverse=True)
    return recipe.model_copy(update={"stop_below": best[k - 1]}) if len(best) >= k else recipe
