"""The training curve as a picture, for --plot. Needs matplotlib: imported by whoever draws. No torch here."""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from dkl.events import Epoch, Event
from dkl.files import replacing
from dkl.plot_strategy import draw_choices, draw_rewards, draw_shares, said_by

SUFFIXES = (".png", ".svg", ".pdf")
_GREY, _BLUE, _ORANGE = "#7d8b94", "#1d7896", "#c2552d"
_TERMS = (_GREY, _BLUE, "#8a5aa8", "#5c8a3a", "#b0892e")
_REDRAW_SECONDS = 2.0


def check_target(path: Path) -> None:
    """ValueError with a sentence where no picture can be written to `path`."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--plot {path}: found the suffix {path.suffix!r}; write one of {', '.join(SUFFIXES)}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"--plot {path}: there is no folder {path.parent}; make it, or name another")


def plotted(events: Generator[Event, None, None], path: Path, title: str) -> Generator[Event, None, None]:
    """The same events. The picture follows them every few seconds and has all epochs when they end."""
    epochs: list[Epoch] = []
    drawn, drawn_at = 0, 0.0
    try:
        with closing(events):
            for event in events:
                if isinstance(event, Epoch):
                    epochs.append(event)
                    if time.monotonic() - drawn_at >= _REDRAW_SECONDS:  # a resumed run says a hundred at once
                        plot_training(epochs, path, title)
                        drawn, drawn_at = len(epochs), time.monotonic()
                yield event
    finally:
        if len(epochs) > drawn:
            plot_training(epochs, path, title)


def plot_training(epochs: Sequence[Epoch], path: Path, title: str) -> None:
    """Draw accuracies, loss with its terms, eps and learning rate over the epochs into `path`, by its suffix; of
    learnt attack strategies rewards, choices and their shares, too.

    The file is complete or as it was before. ValueError for a suffix that is none of SUFFIXES, and without epochs.
    """
    check_target(path)
    if not epochs:
        raise ValueError("no epoch has ended, so there is no training curve; train for one epoch at least")
    strategies = said_by(epochs)
    figure = Figure(figsize=(7, 14 if strategies else 8), layout="constrained")
    over_epochs: Figure | SubFigure = figure
    if strategies:
        over_epochs, shares = figure.subfigures(2, 1, height_ratios=(12, 2))
        number, last = strategies[-1]
        for axes, choice in zip(shares.subplots(1, len(last.choices)), last.choices, strict=True):
            draw_shares(axes, number, choice)
    heights = (4, 3, 3, 3, 1.4) if strategies else (4, 3, 1.4)
    accuracies, losses, *between, settings = over_epochs.subplots(len(heights), sharex=True, height_ratios=heights)
    figure.suptitle(title, fontsize=11)
    _draw_accuracies(accuracies, epochs)
    _draw_losses(losses, epochs)
    for axes, draw in zip(between, (draw_rewards, draw_choices), strict=False):
        draw(axes, strategies)
    _draw_settings(settings, epochs)
    for axes in (accuracies, losses, *between, settings):
        axes.grid(color="#dcdfe1", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    settings.set_xlabel("epoch")
    settings.set_xlim(1, max(2, epochs[-1].epochs))
    settings.xaxis.set_major_locator(MaxNLocator(integer=True))
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix.lower().removeprefix("."), dpi=150)


def _draw(
    axes: Axes, epochs: Sequence[Epoch], value: Callable[[Epoch], float | None], label: str, color: str, style: str
) -> None:
    """One line; epochs that lack the value are gaps, and a line without any is left out."""
    points = [(epoch.epoch, found) for epoch in epochs if (found := value(epoch)) is not None]
    if points:
        numbers, values = zip(*points, strict=True)
        width, marker = (2.0, "o") if style == "-" else (1.3, "o")
        axes.plot(
            numbers, values, style, color=color, label=label, linewidth=width,
            marker=marker if len(points) < 3 else "",
        )  # fmt: skip


def _draw_accuracies(axes: Axes, epochs: Sequence[Epoch]) -> None:
    _draw(axes, epochs, lambda epoch: epoch.validation_accuracy, "clean, held out", _GREY, "-")
    _draw(axes, epochs, lambda epoch: epoch.validation_robust_accuracy, "PGD, held out", _BLUE, "-")
    _draw(axes, epochs, lambda epoch: epoch.clean_accuracy, "clean, training batches", _GREY, "--")
    _draw(axes, epochs, lambda epoch: epoch.adversarial_accuracy, "adversarial, training batches", _BLUE, "--")
    _draw(axes, epochs, lambda epoch: epoch.teacher_accuracy, "teacher, training batches", _ORANGE, "--")
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylabel("accuracy")
    axes.legend(fontsize=8, frameon=False)


def _draw_losses(axes: Axes, epochs: Sequence[Epoch]) -> None:
    _draw(axes, epochs, lambda epoch: epoch.loss, "loss", _ORANGE, "-")
    names = list(dict.fromkeys(name for epoch in epochs for name in epoch.terms))
    for place, name in enumerate(names if len(names) > 1 else []):  # a single term is the loss
        color = _TERMS[place % len(_TERMS)]
        _draw(axes, epochs, partial(_term, name), name.replace("_", " "), color, "--")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("loss")
    axes.legend(fontsize=8, frameon=False)


def _term(name: str, epoch: Epoch) -> float | None:
    return epoch.terms.get(name)


def _draw_settings(axes: Axes, epochs: Sequence[Epoch]) -> None:
    _draw(axes, epochs, lambda epoch: epoch.lr, "learning rate", _GREY, "-")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("learning rate", color=_GREY)
    if any(epoch.eps is not None for epoch in epochs):
        radius = axes.twinx()
        _draw(radius, epochs, lambda epoch: epoch.eps, "eps", _BLUE, "-")
        radius.set_ylim(bottom=0)
        radius.set_ylabel("eps", color=_BLUE)
        radius.spines["top"].set_visible(False)
