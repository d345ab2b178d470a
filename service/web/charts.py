"""Line charts as SVG, drawn on the server: in a page with the numbers behind them as a table, or as a file."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fastapi import Response

from service.web.templating import templates

WIDTH, HEIGHT = 480, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 10, 12, 40
_LEGEND_LINE = 16
_LETTER = 6.2
"""Mean width of a letter in the legend: generous, for fonts that are not known here."""
_FEW = 24
"""Lines of so many points show each of them."""
_STYLE = Path(__file__).parent / "static" / "charts.css"


class Series(NamedTuple):
    """One line of a chart."""

    label: str
    points: Sequence[tuple[float, float | None]]
    """x and y; where y is absent the line has a gap."""
    dashed: bool = False
    step: bool = False
    """Whether a value holds until the next one."""
    band: Sequence[tuple[float, float, float]] = ()
    """x, lower and upper end of an interval around the line."""


class Tick(NamedTuple):
    at: float
    text: str


class Dot(NamedTuple):
    x: float
    y: float
    title: str


class Line(NamedTuple):
    """A series in the chart's frame."""

    label: str
    tone: int
    dashed: bool
    path: str
    band: str
    """Points of a polygon; empty without a band."""
    dots: list[Dot]
    legend: tuple[float, float]


@dataclass(frozen=True)
class Chart:
    """A chart in a frame of WIDTH x `height`, y downwards, and its numbers as texts."""

    title: str
    x_label: str
    y_label: str
    height: int
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line]
    rows: list[list[str]]
    """The table behind: x, and y of every line."""

    width: int = WIDTH


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    percent: bool = False,
    x_format: Callable[[float], str] | None = None,
) -> Chart | None:
    """The lines of `series` in one frame; None where none has a point.

    `percent`: y are fractions, which is how accuracies are kept, and percent is what a reader sees.
    """
    shown = [one for one in series if any(y is not None for _, y in one.points)]
    if not shown:
        return None
    show_x, show_y = x_format or _plain, _percent if percent else _plain
    xs = [x for one in shown for x, y in one.points if y is not None]
    ys = [y for one in shown for y in _heights(one)]
    y_values = ticks(min(ys), max(ys), least=0.02 if percent else 0.0, within=(0, 1) if percent else None)
    legend, top = _legend([one.label for one in shown])
    frame = _Frame(min(xs), max(xs), y_values[0], y_values[-1], top)
    return Chart(
        title=title,
        x_label=x_label,
        y_label=f"{y_label}, %" if percent else y_label,
        height=round(HEIGHT + top - _TOP),
        left=_LEFT,
        right=WIDTH - _RIGHT,
        top=top,
        bottom=frame.bottom,
        x_ticks=[Tick(frame.x(x), show_x(x)) for x in _x_ticks(xs, marked=x_format is not None)],
        y_ticks=[Tick(frame.y(y), f"{100 * y:.4g}" if percent else _plain(y)) for y in y_values],
        lines=[
            _line(one, tone, frame, place, lambda x, y: f"{show_x(x)}: {show_y(y)}")
            for tone, (one, place) in enumerate(zip(shown, legend, strict=True))
        ],
        rows=_table(shown, show_x, show_y),
    )


def svg_file(chart: Chart, filename: str) -> Response:
    """The chart on its own, with its colours, to be kept or printed."""
    style = _STYLE.read_text()
    content = templates.get_template("chart.svg").render(chart=chart, style=style)
    # Shown at its own address a page's policy would take its style away.
    headers = {"Content-Disposition": f'attachment; filename="{filename}"'}
    return Response(content, media_type="image/svg+xml", headers=headers)


# --- the frame --------------------------------------------------------------------------------------------


class _Frame(NamedTuple):
    x_low: float
    x_high: float
    y_low: float
    y_high: float
    top: float

    @property
    def bottom(self) -> float:
        return self.top + HEIGHT - _TOP - _BOTTOM

    def x(self, value: float) -> float:
        span = self.x_high - self.x_low
        part = (value - self.x_low) / span if span else 0.5
        return round(_LEFT + part * (WIDTH - _LEFT - _RIGHT), 2)

    def y(self, value: float) -> float:
        part = (value - self.y_low) / (self.y_high - self.y_low)
        return round(self.bottom - part * (self.bottom - self.top), 2)


def _heights(series: Series) -> Iterable[float]:
    yield from (y for _, y in series.points if y is not None)
    for _, low, high in series.band:
        yield from (low, high)


def _line(
    series: Series, tone: int, frame: _Frame, legend: tuple[float, float], show: Callable[[float, float], str]
) -> Line:
    upper = [f"{frame.x(x)},{frame.y(high)}" for x, _, high in series.band]
    lower = [f"{frame.x(x)},{frame.y(low)}" for x, low, _ in reversed(series.band)]
    known = [(x, y) for x, y in series.points if y is not None]
    return Line(
        label=series.label,
        tone=tone % 6,
        dashed=series.dashed,
        path=_path(series, frame),
        band=" ".join(upper + lower),
        dots=[
            Dot(frame.x(x), frame.y(y), f"{series.label}, {show(x, y)}") for x, y in known if len(known) <= _FEW
        ],
        legend=legend,
    )


def _path(series: Series, frame: _Frame) -> str:
    """SVG path data; a point between two gaps becomes a dot by the line's round ends."""
    parts, pen_is_down = [], False
    for x, y in series.points:
        if y is None:
            pen_is_down = False
        elif not pen_is_down:
            parts.append(f"M{frame.x(x)} {frame.y(y)}h0")
            pen_is_down = True
        else:
            parts.append(f"H{frame.x(x)}V{frame.y(y)}" if series.step else f"L{frame.x(x)} {frame.y(y)}")
    return "".join(parts)


def _legend(labels: Sequence[str]) -> tuple[list[tuple[float, float]], float]:
    """Where each label goes, and where the frame begins below them; one line needs no legend."""
    if len(labels) == 1:
        return [(0.0, 0.0)], _TOP
    places, x, y = [], float(_LEFT), 12.0
    for label in labels:
        width = 26 + _LETTER * len(label)
        if x > _LEFT and x + width > WIDTH:
            x, y = float(_LEFT), y + _LEGEND_LINE
        places.append((round(x, 1), y))
        x += width + 10
    return places, y + _TOP


# --- ticks and texts --------------------------------------------------------------------------------------


def ticks(
    low: float, high: float, *, least: float = 0.0, within: tuple[float, float] | None = None, most: int = 6
) -> list[float]:
    """At most about `most` round numbers that enclose low..high, a span of at least `least`."""
    span = max(high - low, least) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(step * power for step in (1, 2, 5, 10, 20) if span / (step * power) <= most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if within:
        first, last = max(first, round(within[0] / step)), min(last, round(within[1] / step))
    if first == last:
        first, last = (first - 1, last) if within and last >= round(within[1] / step) else (first, last + 1)
    return [round(i * step, 10) for i in range(first, last + 1)]


def _x_ticks(xs: Sequence[float], *, marked: bool) -> list[float]:
    """Round numbers within `xs`; where they have names of their own (`marked`), some of themselves."""
    values = sorted(set(xs))
    if marked or len(values) < 3:
        return _apart(values, (values[-1] - values[0]) / 7)
    whole = all(float(x).is_integer() for x in values)
    rounded = [
        x for x in ticks(values[0], values[-1], least=6.0 if whole else 0.0) if values[0] <= x <= values[-1]
    ]
    return _apart(sorted({values[0], *rounded, values[-1]}), (values[-1] - values[0]) / 14)


def _apart(values: Sequence[float], distance: float) -> list[float]:
    """The last of `values`, and of the others those that leave room for their texts."""
    kept = [values[-1]]
    for value in reversed(values[:-1]):
        if kept[-1] - value >= distance:
            kept.append(value)
    return kept[::-1]


def _plain(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _table(
    series: Sequence[Series], show_x: Callable[[float], str], show_y: Callable[[float], str]
) -> list[list[str]]:
    known = [{x: y for x, y in one.points if y is not None} for one in series]
    places = sorted({x for values in known for x in values})
    return [[show_x(x), *(show_y(values[x]) if x in values else "\u2013" for values in known)] for x in places]
