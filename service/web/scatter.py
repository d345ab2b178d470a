"""The picture of a board: clean against robust accuracy, as a place for every row, and the front of the best."""

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from fastapi import Response
from numpy.typing import NDArray

from service.leaderboard import Found
from service.rows import Row
from service.web.templating import templates

WIDTH, HEIGHT = 480, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 12, 58
"""Around the frame; below it are the ticks, the label and the key."""
_MANY = 400
"""More dots than so many are thinned out."""
_GRIDS = (96, 72, 54, 40, 30, 22, 16)
"""Cells of a side when they are; of each cell one dot stays."""
_LEADERS = 10
_FEW = 15
"""So many dots have their rank beside them."""
_STYLES = ("charts.css", "scatter.css")


class Dot(NamedTuple):
    row: Row
    rank: int
    x: float
    y: float
    front: bool
    """Whether no other row is better in one accuracy and as good in the other."""


class Scatter(NamedTuple):
    """Clean against robust accuracy in a frame of WIDTH x HEIGHT, y downwards."""

    dots: list[Dot]
    """The ones to be drawn last come last."""
    total: int
    """Rows; more than dots where they are thinned out."""
    front: str
    """SVG path of the Pareto front: the edge of what no row is better than."""
    x_ticks: list[tuple[float, float]]
    """Place and value."""
    y_ticks: list[tuple[float, float]]
    x_label: str
    y_label: str
    board: str
    title: str

    width: int = WIDTH
    height: int = HEIGHT
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = HEIGHT - _BOTTOM

    @property
    def labelled(self) -> bool:
        return len(self.dots) <= _FEW


def scatter(found: Found) -> Scatter | None:
    """The rows that match, on whichever page; None where there are none."""
    places = np.fromiter(found.places, np.intp, len(found.places))
    if not len(places):
        return None
    places.sort()
    accuracies = found.standing.accuracies[places]
    x_ticks, y_ticks = (_ticks(accuracies[:, side].min(), accuracies[:, side].max()) for side in (0, 1))
    front = pareto_front(accuracies)
    shown = _thinned(found, places, accuracies, front)
    x = _LEFT + (WIDTH - _LEFT - _RIGHT) * _part(accuracies[:, 0], x_ticks)
    y = HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * _part(accuracies[:, 1], y_ticks)
    rows, ranks = found.standing.rows, found.standing.ranks
    robust = "accuracy under corruptions" if found.board.eps is None else "best known robust accuracy"
    return Scatter(
        dots=[
            Dot(rows[places[i]], ranks[places[i]], round(float(x[i]), 1), round(float(y[i]), 1), bool(front[i]))
            for i in shown[::-1]
        ],
        total=len(places),
        front=_edge(x[front], y[front]),
        x_ticks=_placed(x_ticks, _LEFT, WIDTH - _RIGHT),
        y_ticks=_placed(y_ticks, HEIGHT - _BOTTOM, _TOP),
        x_label="clean accuracy, %",
        y_label=f"{robust}, %",
        board=found.board.title,
        title=f"Clean accuracy against {robust}: {found.board.title}",
    )


def svg_file(picture: Scatter, filename: str) -> Response:
    """The picture on its own, with its colours; its dots lead nowhere."""
    content = templates.get_template("scatter.svg").render(scatter=picture, style=_style())
    headers = {"Content-Disposition": f'attachment; filename="{filename}"'}
    return Response(content, media_type="image/svg+xml", headers=headers)


def pareto_front(accuracies: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of (N, 2) no other row beats, as good in both accuracies and better in one; equal rows all count."""
    order = np.lexsort((-accuracies[:, 1], -accuracies[:, 0]))
    clean, robust = accuracies[order].T
    leads = robust > np.maximum.accumulate(np.concatenate([[-1.0], robust[:-1]]))
    # Equal rows follow each other, and the first of them leads or none does.
    starts = np.concatenate([[True], (clean[1:] != clean[:-1]) | (robust[1:] != robust[:-1])])
    front = np.empty(len(order), np.bool_)
    front[order] = leads[starts][np.cumsum(starts) - 1]
    return front


# --- which dots -------------------------------------------------------------------------------------------


def _thinned(
    found: Found, places: NDArray[np.intp], accuracies: NDArray[np.float64], front: NDArray[np.bool_]
) -> list[int]:
    """Which of `places` to draw, the best first: all of them, or the front, the leaders and one of each cell.

    The measured ones all stay if they are not too many themselves, and otherwise represent their cells.
    """
    if len(places) <= _MANY:
        return list(range(len(places)))
    measured = found.standing.measured[places]
    kept = front | (np.arange(len(places)) < _LEADERS)
    if measured.sum() <= _MANY // 2:
        kept |= measured
    low, high = accuracies.min(axis=0), accuracies.max(axis=0)
    across = (accuracies - low) / np.maximum(high - low, 1e-9)
    first = np.lexsort((np.arange(len(places)), ~measured, ~kept))
    for side in _GRIDS:
        cells = np.minimum(across[first] * side, side - 1).astype(int) @ np.array([side, 1])
        chosen = first[np.unique(cells, return_index=True)[1]]
        if len(chosen) + kept.sum() <= _MANY:
            break
    kept[chosen] = True
    return [int(place) for place in np.flatnonzero(kept)]


# --- the frame --------------------------------------------------------------------------------------------


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers that enclose low..high with some air, within [0, 1]."""
    span = max(high - low, 0.04)
    step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2) if span / step <= 6 or step == 0.2)
    first = max(0, math.floor((low - span / 12) / step + 1e-9))
    last = min(round(1 / step), math.ceil((high + span / 12) / step - 1e-9))
    return [round(i * step, 2) for i in range(first, last + 1)]


def _part(values: NDArray[np.float64], ticks: Sequence[float]) -> NDArray[np.float64]:
    return (values - ticks[0]) / (ticks[-1] - ticks[0])


def _placed(ticks: Sequence[float], start: float, end: float) -> list[tuple[float, float]]:
    parts = _part(np.array(ticks), ticks).tolist()
    return [(round(start + part * (end - start), 1), value) for part, value in zip(parts, ticks, strict=True)]


def _edge(x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
    """A staircase through the front, from the frame's left end down to its bottom."""
    corners = sorted(set(zip(x.round(1).tolist(), y.round(1).tolist(), strict=True)))
    steps = "".join(f"H{x}V{y}" for x, y in _turned(corners))
    return f"M{_LEFT} {corners[0][1]}{steps}V{HEIGHT - _BOTTOM}"


def _turned(corners: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Where the staircase goes from each corner: to its x, then down to the height of the next."""
    heights = [y for _, y in corners[1:]] + [corners[-1][1]]
    return [(x, y) for (x, _), y in zip(corners, heights, strict=True)]


@cache
def _style() -> str:
    return "".join((Path(__file__).parent / "static" / name).read_text() for name in _STYLES)
