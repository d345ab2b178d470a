"""The picture of a training: what is in it, that it is whole, and that it keeps up with the events."""

import math
from collections.abc import Generator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from samples import EPOCH, PROGRESS, STARTED

from dkl import plot
from dkl.events import Epoch, Event

Image = pytest.importorskip("PIL.Image")


def epoch(number: int, *, adversarial: bool = True, held_out: bool = True) -> Epoch:
    terms = {"natural": 1.0 / number, "wmse": 0.5, "soft_ce": 0.25} if adversarial else {"natural": 1.0 / number}
    return EPOCH.model_copy(
        update={
            "epoch": number,
            "epochs": 5,
            "loss": sum(terms.values()),
            "terms": terms,
            "clean_accuracy": 0.1 * number,
            "adversarial_accuracy": 0.05 * number if adversarial else None,
            "validation_accuracy": 0.08 * number if held_out else None,
            "validation_robust_accuracy": 0.04 * number if held_out and adversarial else None,
            "eps": 0.01 * number if adversarial else None,
        }
    )


def texts(path: Path) -> list[str]:
    """What a picture in SVG says, from the comments that matplotlib leaves beside the glyphs."""
    parser = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
    comments = ElementTree.parse(path, parser).iter(ElementTree.Comment)
    return [(comment.text or "").strip() for comment in comments]


def test_the_picture_names_every_line_that_there_is(tmp_path: Path) -> None:
    target = tmp_path / "out.svg"
    plot.plot_training([epoch(n) for n in range(1, 6)], target, "ikl-at-digits, Linf 0.2, seed 7")
    said = texts(target)
    lines = [
        *("clean, held out", "PGD, held out", "clean, training batches", "adversarial, training batches"),
        *("loss", "natural", "wmse", "soft ce", "learning rate", "eps", "ikl-at-digits, Linf 0.2, seed 7"),
    ]
    assert set(lines) <= set(said)


def test_a_teacher_that_learns_along_is_drawn(tmp_path: Path) -> None:
    taught = [epoch(n).model_copy(update={"teacher_accuracy": 0.15 * n}) for n in range(1, 6)]
    plot.plot_training(taught, tmp_path / "out.svg", "lbgat-digits")
    assert "teacher, training batches" in texts(tmp_path / "out.svg")
    plot.plot_training([epoch(1)], tmp_path / "other.svg", "trades-digits")
    assert "teacher, training batches" not in texts(tmp_path / "other.svg")


def test_what_a_training_does_not_have_is_not_in_the_picture(tmp_path: Path) -> None:
    target = tmp_path / "out.svg"
    plot.plot_training([epoch(n, adversarial=False, held_out=False) for n in (1, 2)], target, "natural")
    said = set(texts(target))
    assert {"clean, training batches", "loss"} <= said
    assert not said & {"PGD, held out", "clean, held out", "adversarial, training batches", "eps", "natural term"}


def lines_of(figure_axes: object) -> dict[str, tuple[list[float], list[float]]]:
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in figure_axes.get_lines()  # type: ignore[attr-defined]
    }


def test_lines_are_the_events_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = []
    monkeypatch.setattr(plot, "Figure", lambda **options: figures.append(real(**options)) or figures[-1])
    epochs = [epoch(1), epoch(2, held_out=False), epoch(3)]
    plot.plot_training(epochs, tmp_path / "out.png", "t")
    accuracies, losses, settings, radius = figures[0].axes
    assert lines_of(accuracies)["clean, training batches"] == ([1, 2, 3], [e.clean_accuracy for e in epochs])
    assert lines_of(accuracies)["PGD, held out"] == ([1, 3], [0.04, 0.12])
    assert lines_of(losses)["natural"] == ([1, 2, 3], [1.0, 0.5, 1 / 3])
    assert lines_of(losses)["loss"][1] == [e.loss for e in epochs]
    assert lines_of(settings)["learning rate"][1] == [0.1] * 3
    assert lines_of(radius)["eps"][1] == [0.01, 0.02, 0.03]
    assert accuracies.get_xlim() == (1, 5)


real = plot.Figure


@pytest.mark.parametrize(("suffix", "begins"), [(".png", b"\x89PNG"), (".PDF", b"%PDF"), (".svg", b"<?xml")])
def test_the_suffix_says_the_format(suffix: str, begins: bytes, tmp_path: Path) -> None:
    target = tmp_path / f"out{suffix}"
    plot.plot_training([epoch(1)], target, "t")
    assert target.read_bytes().startswith(begins)


def test_a_picture_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    target = tmp_path / "out.png"
    target.write_bytes(b"older")
    plot.plot_training([epoch(1), epoch(2)], target, "t")
    with Image.open(target) as picture:
        picture.load()
        assert min(picture.size) > 900
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


def test_targets_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"found the suffix '.gif'; write one of .png, .svg, .pdf"):
        plot.check_target(tmp_path / "out.gif")
    with pytest.raises(ValueError, match="there is no folder"):
        plot.check_target(tmp_path / "nowhere" / "out.png")
    with pytest.raises(ValueError, match="no epoch has ended"):
        plot.plot_training([], tmp_path / "out.png", "t")
    plot.check_target(Path("out.png"))


def test_the_picture_follows_the_events_and_has_them_all_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(plot, "plot_training", lambda epochs, *_: drawn.append(len(epochs)))
    said = [STARTED, PROGRESS, *(epoch(n) for n in range(1, 5))]
    assert list(plot.plotted(iter_of(said), tmp_path / "out.png", "t")) == said
    assert drawn == [1, 4]  # the others came within two seconds
    monkeypatch.setattr(plot, "_REDRAW_SECONDS", -math.inf)
    drawn.clear()
    list(plot.plotted(iter_of(said), tmp_path / "out.png", "t"))
    assert drawn == [1, 2, 3, 4]


def test_whoever_stops_in_between_gets_the_picture_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(plot, "plot_training", lambda epochs, *_: drawn.append(len(epochs)))
    closed: list[bool] = []

    def said() -> Generator[Event, None, None]:
        try:
            yield from (epoch(n) for n in range(1, 6))
        finally:
            closed.append(True)

    events = plot.plotted(said(), tmp_path / "out.png", "t")
    for _ in range(3):
        next(events)
    events.close()
    assert drawn == [1, 3]
    assert closed == [True]


def iter_of(events: list[Event]) -> Generator[Event, None, None]:
    yield from events
