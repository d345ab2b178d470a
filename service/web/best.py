"""The best robust accuracy of a board over time, of what was measured here and of what others report."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.leaderboard import Found
from service.web.charts import Chart, Series, line_chart
from service.wording import when

Point = tuple[float, float]
"""Seconds since the epoch, and a fraction."""
_DAY = 86400.0


def best_over_time(found: Found) -> Chart | None:
    """Two step lines over the rows that match: measured ones by the day, published ones by their year."""
    standing = found.standing
    places = np.fromiter(found.places, np.intp, len(found.places))
    measured, dates, best = standing.measured[places], standing.dates[places], standing.accuracies[places, 1]
    published_points = _records(dates[~measured], best[~measured])
    measured_points = _records(dates[measured], best[measured])
    times = [at for at, _ in published_points + measured_points]
    if not times:
        return None
    years = {at for at, _ in published_points}
    day = "%Y-%m-%d" if max(times) - min(times) > 2 * _DAY else "%m-%d %H:%M"
    robust = "accuracy under corruptions" if found.board.eps is None else "robust accuracy"
    return line_chart(
        f"Best {robust} over time: {found.board.title}",
        [
            Series("published", _until(published_points, max(times)), step=True),
            Series("measured here", _until(measured_points, max(times)), step=True),
        ],
        x_label="published or measured in",
        y_label=f"best known {robust}",
        percent=True,
        x_format=lambda at: when(at, "%Y" if at in years else day),
    )


def _records(dates: NDArray[np.float64], accuracies: NDArray[np.float64]) -> list[Point]:
    """Whenever the best so far became better, in order of time; of rows at one time the best only."""
    order = np.lexsort((-accuracies, dates))
    order = order[~np.isnan(dates[order])]
    so_far = np.maximum.accumulate(np.concatenate([[-1.0], accuracies[order]]))
    records = order[accuracies[order] > so_far[:-1]]
    return list(zip(dates[records].tolist(), accuracies[records].tolist(), strict=True))


def _until(points: Sequence[Point], end: float) -> list[Point]:
    """The last record still holds at the end."""
    return [*points, (end, points[-1][1])] if points and points[-1][0] < end else list(points)
