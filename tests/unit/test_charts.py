"""Line charts: what is where in the frame, and the numbers behind."""

import re
from xml.etree import ElementTree

import pytest

from service.web.charts import WIDTH, Chart, Series, line_chart, svg_file

ROOT = "{http://www.w3.org/2000/svg}"


def chart(*series: Series, **options: object) -> Chart:
    drawn = line_chart("Accuracy", series, x_label="epoch", y_label="accuracy", **options)  # type: ignore[arg-type]
    assert drawn is not None
    return drawn


def places(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](\S+?) ([\d.]+)", path)]


def test_points_are_where_the_ticks_say() -> None:
    drawn = chart(Series("a", [(0, 0.2), (5, 0.4), (10, 0.6)]), percent=True)
    y = {tick.text: tick.at for tick in drawn.y_ticks}
    x = {tick.text: tick.at for tick in drawn.x_ticks}
    assert places(drawn.lines[0].path) == [
        (x["0"], y["20"]),
        ((x["0"] + x["10"]) / 2, y["40"]),
        (x["10"], y["60"]),
    ]
    assert y["20"] > y["60"]  # downwards
    assert drawn.y_label == "accuracy, %"
    assert drawn.rows == [["0", "20.00 %"], ["5", "40.00 %"], ["10", "60.00 %"]]


def test_a_gap_lifts_the_pen_and_a_step_goes_sideways_first() -> None:
    drawn = chart(Series("gap", [(1, 1.0), (2, None), (3, 2.0)]), Series("step", [(1, 1.0), (3, 3.0)], step=True))
    gap, step = (line.path for line in drawn.lines)
    assert gap.count("M") == 2
    assert "L" not in gap
    assert re.fullmatch(r"M\S+ \S+h0H[\d.]+V[\d.]+", step)
    assert drawn.rows == [["1", "1", "1"], ["3", "2", "3"]]


def test_series_with_other_places_share_a_table() -> None:
    drawn = chart(Series("a", [(1, 1.0)]), Series("b", [(2, 5.0), (3, None)]))
    assert drawn.rows == [["1", "1", "\u2013"], ["2", "\u2013", "5"]]


def test_nothing_to_draw_is_no_chart() -> None:
    assert line_chart("a", [], x_label="x", y_label="y") is None
    assert line_chart("a", [Series("a", [(1, None)])], x_label="x", y_label="y") is None


@pytest.mark.parametrize("values", [[0.0], [5.0], [-3.0, -3.0], [1e-7, 2e-7], [0.0, 1e6], [0.999, 1.0]])
@pytest.mark.parametrize("percent", [False, True])
def test_every_point_is_inside_the_frame(values: list[float], percent: bool) -> None:
    if percent and not all(0 <= value <= 1 for value in values):
        pytest.skip("no fraction")
    drawn = chart(Series("a", list(enumerate(values))), percent=percent)
    assert len(drawn.y_ticks) >= 2
    assert len({tick.at for tick in drawn.y_ticks}) == len(drawn.y_ticks)
    for dot in drawn.lines[0].dots:
        assert drawn.left <= dot.x <= drawn.right
        assert drawn.top <= dot.y <= drawn.bottom


def test_a_band_goes_out_above_and_back_below() -> None:
    drawn = chart(Series("a", [(0, 0.5), (1, 0.5)], band=[(0, 0.4, 0.6), (1, 0.3, 0.7)]), percent=True)
    corners = [tuple(map(float, corner.split(","))) for corner in drawn.lines[0].band.split()]
    assert [x for x, _ in corners] == [drawn.left, drawn.right, drawn.right, drawn.left]
    assert corners[0][1] < corners[3][1]
    assert all(drawn.top <= y <= drawn.bottom for _, y in corners)


def test_a_long_legend_takes_several_lines_within_the_frame() -> None:
    names = [f"a training with a long name, number {number}" for number in range(6)]
    drawn = chart(*[Series(name, [(1, 1.0), (2, 2.0)]) for name in names])
    assert len({line.legend[1] for line in drawn.lines}) > 1
    assert max(line.legend[1] for line in drawn.lines) < drawn.top
    assert all(line.legend[0] < WIDTH / 2 for line in drawn.lines)
    assert chart(Series("alone", [(1, 1.0)])).top < drawn.top


def test_many_points_are_a_line_without_dots() -> None:
    assert chart(Series("a", [(x, x / 7) for x in range(200)])).lines[0].dots == []


def test_names_of_places_are_theirs() -> None:
    drawn = chart(Series("a", [(0.0, 1.0), (4 / 255, 0.5)]), x_format=lambda x: f"{255 * x:.0f}/255")
    assert [tick.text for tick in drawn.x_ticks] == ["0/255", "4/255"]
    assert [row[0] for row in drawn.rows] == ["0/255", "4/255"]


def test_the_file_is_svg_of_its_own_and_escapes_names() -> None:
    answer = svg_file(chart(Series("<script>&", [(1, 1.0), (2, 2.0)]), Series("b", [(1, 1.0)])), "accuracy.svg")
    assert answer.media_type == "image/svg+xml"
    root = ElementTree.fromstring(bytes(answer.body))
    assert root.tag == f"{ROOT}svg"
    assert "stroke" in (root.findtext(f"{ROOT}style") or "")
    assert "<script>&" in [text.text for text in root.iter(f"{ROOT}text")]
    assert not list(root.iter(f"{ROOT}script"))
