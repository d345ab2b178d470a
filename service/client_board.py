"""A leaderboard as a client reads it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from service.client_http import ServiceError

if TYPE_CHECKING:
    from service.rows import Board, Row


@dataclass(frozen=True)
class Ranking:
    """One board with a page of its rows, best first unless another order was asked for."""

    board: "Board | None"
    """None where no board matches."""
    rows: "tuple[Row, ...]"
    total: int
    """Rows that match, on all pages together."""
    pages: int
    boards: "tuple[Board, ...]"
    """Every board that has rows; the busiest first."""
    document: dict[str, Any]
    """As the interface answers it."""


def read_ranking(document: dict[str, Any]) -> Ranking:
    """The answer of GET /api/v1/leaderboard; ServiceError where it is of another version."""
    from pydantic import ValidationError

    from service.rows import Board, Row

    try:
        board = Board.model_validate(document["board"]) if document["board"] else None
        return Ranking(
            board=board,
            rows=tuple(Row.model_validate({**row, "board": board}) for row in document["rows"]),
            total=document["total"],
            pages=document["pages"],
            boards=tuple(map(Board.model_validate, document["boards"])),
            document=document,
        )
    except (KeyError, ValidationError):
        raise ServiceError(
            "the service's leaderboard has other fields than this version of dkl-bench knows; install the "
            "service's version here"
        ) from None
