"""The picture of a board: clean against robust accuracy, as a place for every row."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from service.leaderboard import Row


class Dot(NamedTuple):
    row: Row
    x: float
    y: float


class Scatter(NamedTuple):
    """Clean against robust accuracy in a frame of 100 x 100, y downwards."""

    dots: list[Dot]
    x_ticks: list[tuple[float, float]]
    """Place and value."""
    y_ticks: list[tuple[float, float]]


def scatter(rows: Sequence[Row]) -> Scatter | None:
    if not rows:
        return None
    x_ticks = _ticks([row.clean_accuracy for row in rows])
    y_ticks = _ticks([row.robust_accuracy for row in rows])
    dots = [
        Dot(row, _place(row.clean_accuracy, x_ticks), 100 - _place(row.robust_accuracy, y_ticks)) for row in rows
    ]
    return Scatter(
        dots,
        [(_place(value, x_ticks), value) for value in x_ticks],
        [(100 - _place(value, y_ticks), value) for value in y_ticks],
    )


def _ticks(values: Sequence[float]) -> list[float]:
    """Round numbers that enclose `values` with some air, within [0, 1]."""
    low, high = min(values), max(values)
    span = max(high - low, 0.04)
    step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2) if span / step <= 6 or step == 0.2)
    first = max(0, math.floor((low - span / 12) / step + 1e-9))
    last = min(round(1 / step), math.ceil((high + span / 12) / step - 1e-9))
    return [round(i * step, 2) for i in range(first, last + 1)]


def _place(value: float, ticks: Sequence[float]) -> float:
    return round(100 * (value - ticks[0]) / (ticks[-1] - ticks[0]), 2)
