"""Dot plots as SVG: one lane per name, with its values as dots; in a page with their table, or as a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fastapi import Response

from service.web.charts import WIDTH, Tick, ticks
from service.web.templating import templates

_RIGHT, _BOTTOM = 14, 40
_LANE = 19
_LETTER, _CAPITAL = 6.4, 8.4
"""Mean widths: generous, for fonts that are not known here."""
_STYLE = Path(__file__).parent / "static" / "charts.css"


class Mark(NamedTuple):
    value: float
    title: str
    """What a pointer on the dot reads, and the table says."""
    hollow: bool = False
    """Drawn as a ring."""
    interval: tuple[float, float] | None = None
    """Drawn as a line through the dot."""


class Lane(NamedTuple):
    label: str
    marks: Sequence[Mark]
    stands_out: bool = False


class Reference(NamedTuple):
    """A vertical line across all lanes."""

    value: float
    label: str


class Dot(NamedTuple):
    x: float
    title: str
    hollow: bool
    interval: tuple[float, float] | None


class Drawn(NamedTuple):
    label: str
    y: float
    tone: int
    dots: list[Dot]


class Line(NamedTuple):
    x: float
    y: float
    """Of its label; the line begins below."""
    anchor: str
    label: str


class DotPlot(NamedTuple):
    """The lanes in a frame of WIDTH x `height`, y downwards, and their numbers as texts."""

    title: str
    x_label: str
    height: int
    top: float
    bottom: float
    ticks: list[Tick]
    lanes: list[Drawn]
    references: list[Line]
    rows: list[tuple[str, str, str]]
    """The table behind: lane, what, value."""
    left: float
    right: float = WIDTH - _RIGHT
    width: int = WIDTH


def dot_plot(
    title: str, lanes: Sequence[Lane], *, x_label: str, unit: str, references: Sequence[Reference] = ()
) -> DotPlot | None:
    """The lanes from top to bottom; None where none has a mark. Values are in percent or percentage points."""
    shown = [lane for lane in lanes if lane.marks]
    if not shown:
        return None
    marks = [mark for lane in shown for mark in lane.marks]
    values = [mark.value for mark in marks] + [line.value for line in references]
    values += [end for mark in marks if mark.interval for end in mark.interval]
    scale = ticks(min(values), max(values), least=1.0)
    top = 8.0 + 16 * len(references)
    bottom = top + _LANE * len(shown)

    left = round(14 + max(_width(lane.label) for lane in shown), 1)

    def x(value: float) -> float:
        return round(left + (value - scale[0]) / (scale[-1] - scale[0]) * (WIDTH - _RIGHT - left), 2)

    return DotPlot(
        title=title,
        x_label=f"{x_label}, {unit}",
        height=round(bottom + _BOTTOM),
        top=top,
        bottom=bottom,
        ticks=[Tick(x(value), f"{value:.4g}") for value in scale],
        lanes=[
            Drawn(
                lane.label,
                round(top + _LANE * (place + 0.5), 1),
                1 if lane.stands_out else 0,
                [
                    Dot(
                        x(mark.value),
                        f"{lane.label}, {mark.title}: {mark.value:.2f} {unit}",
                        mark.hollow,
                        mark.interval and (x(mark.interval[0]), x(mark.interval[1])),
                    )
                    for mark in lane.marks
                ],
            )
            for place, lane in enumerate(shown)
        ],
        references=[_line(x(line.value), place, line.label) for place, line in enumerate(references)],
        rows=[
            (lane.label, mark.title, f"{mark.value:.2f} {unit}")
            for lane in [*shown, *(Lane(line.label, [Mark(line.value, "alone")]) for line in references)]
            for mark in lane.marks
        ],
        left=left,
    )


def svg_file(plot: DotPlot, filename: str) -> Response:
    """The plot as a file, to be kept or printed."""
    headers = {"Content-Disposition": f'inline; filename="{filename}"'}
    return Response(svg_text(plot), media_type="image/svg+xml", headers=headers)


def svg_text(plot: DotPlot) -> str:
    """The plot on its own, with its colours."""
    return templates.get_template("dots.svg").render(plot=plot, style=_STYLE.read_text())


def _width(label: str) -> float:
    return sum(_CAPITAL if letter.isupper() else _LETTER for letter in label)


def _line(x: float, place: int, label: str) -> Line:
    return Line(x, 12.0 + 16 * place, "end" if x > 0.6 * WIDTH else "start", label)
