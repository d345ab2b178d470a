"""What the page of a training shows of attack strategies that are learnt along: what was drawn and earned."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from service.web.charts import Chart, Series, line_chart
from service.web.training import Training

StrategyCurveName = Literal[
    "reward", "entropy", "means", "eps-drawn", "steps-drawn", "step_size-drawn", "beta-drawn"
]
STRATEGY_CURVES: tuple[StrategyCurveName, ...] = (
    *("reward", "entropy", "means"),
    *("eps-drawn", "steps-drawn", "step_size-drawn", "beta-drawn"),
)
_Said = dict[str, Any]
"""The field `strategy` of an epoch's event."""


class _Epoch(NamedTuple):
    number: int
    said: _Said


def strategy_charts(training: Training) -> list[tuple[StrategyCurveName, Chart]]:
    """All that there is to draw, by name; nothing where every image is attacked alike."""
    drawn = ((name, strategy_curve(training, name)) for name in STRATEGY_CURVES)
    return [(name, chart) for name, chart in drawn if chart]


def strategy_curve(training: Training, name: StrategyCurveName) -> Chart | None:
    """One of them; None where no epoch has a value for it."""
    epochs = [
        _Epoch(epoch["epoch"], epoch["strategy"]) for epoch in training.epochs[::-1] if epoch.get("strategy")
    ]
    if not epochs:
        return None
    match name:
        case "reward":
            parts = [_line(epochs, part, _reward(part)) for part in ("total", "loss", "robust", "clean")]
            return _over_epochs("Reward of the strategies", "reward", parts)
        case "entropy":
            lines = [_line(epochs, "entropy", lambda said: float(said["entropy"]))]
            lines.append(_line(epochs, "all alike likely", _largest_entropy, dashed=True))
            return _over_epochs("Entropy of the strategies", "nats", lines)
        case "means":
            places = [
                _line(epochs, _label(one["name"]), _place(one["name"])) for one in epochs[-1].said["choices"]
            ]
            title = "Means of what was drawn"
            return _over_epochs(title, "from smallest to largest", places, percent=True)
        case _:
            return _shares(epochs, name.removesuffix("-drawn"), in_levels=training.in_levels)


def _over_epochs(title: str, y_label: str, lines: Sequence[Series], *, percent: bool = False) -> Chart | None:
    return line_chart(f"{title} by epoch", lines, x_label="epoch", y_label=y_label, percent=percent)


def _line(
    epochs: Sequence[_Epoch], label: str, of: Callable[[_Said], float | None], dashed: bool = False
) -> Series:
    return Series(label, [(epoch.number, of(epoch.said)) for epoch in epochs], dashed)


def _label(name: str) -> str:
    return name.replace("_", " ")


def _reward(part: str) -> Callable[[_Said], float | None]:
    def of(said: _Said) -> float | None:
        value: float | None = said["rewards"].get(part)
        return value

    return of


def _largest_entropy(said: _Said) -> float:
    return sum(math.log(len(one["values"])) for one in said["choices"])


def _choice(said: _Said, name: str) -> dict[str, Any] | None:
    return next((one for one in said["choices"] if one["name"] == name), None)


def _place(name: str) -> Callable[[_Said], float | None]:
    """Where the mean lies between the smallest value and the largest, as a fraction."""

    def of(said: _Said) -> float | None:
        one = _choice(said, name)
        if one is None or len(one["values"]) < 2:
            return None
        smallest, largest = one["values"][0], one["values"][-1]
        return float((one["mean"] - smallest) / (largest - smallest))

    return of


def _shares(epochs: Sequence[_Epoch], name: str, *, in_levels: bool) -> Chart | None:
    """How often each value was drawn, in the last epoch and, dashed, in the first."""
    levels = in_levels and name in {"eps", "step_size"}
    lines: list[Series] = []
    for epoch in (epochs[-1], epochs[0])[: len(epochs)]:
        one = _choice(epoch.said, name)
        if one is None:
            return None
        values = [round(255 * value, 6) if levels else value for value in one["values"]]
        dashed = bool(lines)
        lines.append(Series(f"epoch {epoch.number}", list(zip(values, one["shares"], strict=True)), dashed))
    x_label = f"{_label(name)}, in 1/255" if levels else _label(name)
    return line_chart(
        f"{_label(name)}: how often each value was drawn", lines, x_label=x_label, y_label="images", percent=True
    )
