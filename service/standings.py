"""The boards as readers meet them: ranks, rows that cannot be told from the leader, orders to page through.

All of this depends on every row of a board, and rows change rarely: it is worked out when a board has changed, and
remembered until it changes again. A reader's request costs only the rows that it shows.
"""

import math
import re
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from itertools import groupby
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine

from service.measured import Measured, remembered
from service.reported import reported
from service.rows import Board, Boards, Row
from service.significance import Verdicts, ties

_FAMILIES = 40


class Standing:
    """The ranking of one board. Places are positions in `rows`."""

    def __init__(self, rows: Sequence[Row], verdicts: Mapping[str, Verdicts]) -> None:
        self.rows = sorted(rows, key=lambda row: (-row.best_known_accuracy, row.name.casefold(), row.entry))
        """The best known robust accuracy first."""
        self._verdicts = verdicts
        self._orders: dict[str, Sequence[int]] = {"-best_known_accuracy": range(len(self.rows))}

    @cached_property
    def ranks(self) -> list[int]:
        """By place; equal accuracies share the better rank."""
        ranks: list[int] = []
        for _, equals in groupby(self.rows, key=lambda row: row.best_known_accuracy):
            ranks += [len(ranks) + 1] * len(list(equals))
        return ranks

    @cached_property
    def leader(self) -> int:
        """The place of a row of rank 1; of several, one that others can be compared with."""
        first = [place for place, rank in enumerate(self.ranks) if rank == 1]
        return max(first, key=lambda p: (self.rows[p].entry in self._verdicts, self.rows[p].images or 0, -p))

    @cached_property
    def ties(self) -> list[Any]:
        """By place, what Row.tied says."""
        return list(ties(self.leader, self.rows, self._verdicts))

    @cached_property
    def texts(self) -> list[str]:
        """By place, what a search looks through, case-folded."""
        columns = ("name", "architecture", "suite", "source", "title", "authors", "venue", "engine", "entry")
        return ["\n".join(str(getattr(row, c) or "") for c in columns).casefold() for row in self.rows]

    @cached_property
    def families(self) -> list[str]:
        """The beginnings of the architectures' names, up to their sizes: "WideResNet"; the commonest, in order."""
        counted = Counter(re.split(r"[-\s]*\d", row.architecture, maxsplit=1)[0] for row in self.rows)
        return sorted(name for name, _ in counted.most_common(_FAMILIES) if name)

    @cached_property
    def accuracies(self) -> NDArray[np.float64]:
        """Clean and best known robust accuracy by place; (N, 2)."""
        return np.array([(row.clean_accuracy, row.best_known_accuracy) for row in self.rows]).reshape(-1, 2)

    @cached_property
    def measured(self) -> NDArray[np.bool_]:
        """Whether the row was measured here, by place; (N,)."""
        return np.array([row.source == "measured" for row in self.rows], np.bool_)

    @cached_property
    def dates(self) -> NDArray[np.float64]:
        """When it was measured, or when the year of its paper began, by place; seconds since the epoch, (N,).

        NaN where not known.
        """
        return np.array([_date(row) for row in self.rows])

    def order(self, sort: str) -> Sequence[int]:
        """The places by a column of Row, with a minus in front from high to low; rows that lack it come last."""
        if sort not in self._orders:
            self._orders[sort] = self._ordered(sort.removeprefix("-"), down=sort.startswith("-"))
        return self._orders[sort]

    def _ordered(self, column: str, *, down: bool) -> list[int]:
        values = [getattr(row, column) for row in self.rows]
        keys = [value.casefold() if isinstance(value, str) else value for value in values]
        known = [place for place, key in enumerate(keys) if key is not None]
        return sorted(known, key=keys.__getitem__, reverse=down) + [p for p, key in enumerate(keys) if key is None]

    def shown(self, place: int) -> Row:
        """The row at a place with its rank and whether it is tied with the leader."""
        return self.rows[place].model_copy(update={"rank": self.ranks[place], "tied": self.ties[place]})


def _date(row: Row) -> float:
    if row.finished_at is not None:
        return row.finished_at
    return math.nan if row.year is None else datetime(row.year, 1, 1, tzinfo=UTC).timestamp()


class Standings:
    """All boards of one database, as they were at one moment."""

    def __init__(self, here: Measured, there: Boards, before: "Standings | None") -> None:
        self._here, self._there = here, there
        self.mark = secrets.token_hex(8)
        """Names this state of the boards, among all processes."""
        self.sizes = {board: sum(map(len, self._parts(board))) for board in [*here.boards, *there]}
        self.boards = sorted(self.sizes, key=lambda board: (-self.sizes[board], board.title))
        """The busiest first."""
        self._standings = {} if before is None else before._unchanged_in(self)

    def are_of(self, here: Measured, there: Boards) -> bool:
        return self._here is here and self._there is there

    def of(self, board: Board) -> Standing:
        if board not in self._standings:
            here, there = self._parts(board)
            self._standings[board] = Standing([*here, *there], self._here.verdicts)
        return self._standings[board]

    def find(self, entry: str) -> Row | None:
        """The row of that name on whichever board; with rank."""
        at = self._places.get(entry)
        return self.of(at[0]).shown(at[1]) if at else None

    @cached_property
    def _places(self) -> dict[str, tuple[Board, int]]:
        ranked = ((board, place, row) for board in self.boards for place, row in enumerate(self.of(board).rows))
        return {row.entry: (board, place) for board, place, row in ranked}

    def _parts(self, board: Board) -> tuple[Sequence[Row], Sequence[Row]]:
        return self._here.boards.get(board, _NO_ROWS), self._there.get(board, _NO_ROWS)

    def _unchanged_in(self, later: "Standings") -> dict[Board, Standing]:
        def unchanged(board: Board) -> bool:
            parts = zip(self._parts(board), later._parts(board), strict=True)
            return board in later.sizes and all(before is after for before, after in parts)

        return {board: standing for board, standing in self._standings.items() if unchanged(board)}


_NO_ROWS: Sequence[Row] = ()


class _Memory:
    def __init__(self) -> None:
        self._lock = Lock()
        self._standings: Standings | None = None

    def look(self, db: Engine) -> Standings:
        here, there = remembered(db), reported(db)
        with self._lock:
            if self._standings is None or not self._standings.are_of(here, there):
                self._standings = Standings(here, there, self._standings)
            return self._standings


_lock = Lock()
_memories: WeakKeyDictionary[Engine, _Memory] = WeakKeyDictionary()


def standings(db: Engine) -> Standings:
    """All boards; the same object until one of them changes."""
    with _lock:
        memory = _memories.setdefault(db, _Memory())
    return memory.look(db)
