"""Learnt attack strategies as pictures, for --plot: rewards and choices over the epochs, shares in the last one.

Needs matplotlib: imported by whoever draws. No torch here.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from dkl.documents import show_pixels
from dkl.events import ChoiceShares, Epoch, StrategyEpoch

_COLORS = ("#1d7896", "#c2552d", "#8a5aa8", "#5c8a3a")
_GREY = "#7d8b94"


def said_by(epochs: Sequence[Epoch]) -> list[tuple[int, StrategyEpoch]]:
    """What epochs say about learnt strategies, by their numbers."""
    return [(epoch.epoch, epoch.strategy) for epoch in epochs if epoch.strategy is not None]


def draw_rewards(axes: Axes, said: Sequence[tuple[int, StrategyEpoch]]) -> None:
    """What strategies earned; epochs in which nothing was learnt from them are left out."""
    for name, color in zip(("total", "loss", "robust", "clean"), (_COLORS[1], _GREY, *_COLORS[::2]), strict=True):
        points = [(number, epoch.rewards[name]) for number, epoch in said if name in epoch.rewards]
        if points:
            _line(axes, points, f"reward: {name}", color, "-" if name == "total" else "--")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("reward")
    if axes.lines:
        axes.legend(fontsize=8, frameon=False, ncols=2)


def draw_choices(axes: Axes, said: Sequence[tuple[int, StrategyEpoch]]) -> None:
    """The means of what was drawn, from the smallest value to the largest, and the entropy."""
    for place, color in zip(range(len(said[0][1].choices)), _COLORS, strict=False):
        points = [(number, _height(epoch.choices[place])) for number, epoch in said]
        _line(axes, points, f"mean {said[0][1].choices[place].name.replace('_', ' ')}", color, "-")
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylabel("of the range")
    axes.legend(fontsize=8, frameon=False, ncols=2)
    entropy = axes.twinx()
    _line(entropy, [(number, epoch.entropy) for number, epoch in said], "entropy", _GREY, "--")
    entropy.set_ylim(bottom=0)
    entropy.set_ylabel("entropy, nats", color=_GREY)
    entropy.spines["top"].set_visible(False)


def draw_shares(axes: Axes, number: int, shares: ChoiceShares) -> None:
    """How often each value of a list was drawn in epoch `number`."""
    axes.bar(range(len(shares.values)), shares.shares, color=_COLORS[0])
    show = show_pixels if shares.name in {"eps", "step_size"} else "{:g}".format
    axes.set_xticks(range(len(shares.values)), map(show, shares.values), fontsize=6, rotation=90)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(axis="y", labelsize=7)
    axes.set_title(f"{shares.name.replace('_', ' ')}, epoch {number}", fontsize=9)


def _height(shares: ChoiceShares) -> float:
    smallest, largest = shares.values[0], shares.values[-1]
    return (shares.mean - smallest) / (largest - smallest) if largest > smallest else 0.5


def _line(axes: Axes, points: Sequence[tuple[int, float]], label: str, color: str, style: str) -> None:
    numbers, values = zip(*points, strict=True)
    marker = "o" if len(points) < 3 else ""
    axes.plot(numbers, values, style, color=color, label=label, linewidth=1.5, marker=marker)
