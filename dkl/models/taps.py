"""Features on the way to the logits: what objectives that compare features look at.

Shapes: B batch, C channels, H, W the map, W features, K classes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.nn.functional import relu


class Taps(NamedTuple):
    """One pass of a network."""

    logits_BK: Tensor
    maps: tuple[Tensor, ...]
    """(B, C, H, W): the stem's, then what comes out of every stage. In networks that activate before they
    convolve these are sums, without an activation."""
    preacts: tuple[Tensor, ...]
    """The same for every stage but the stem, just before an activation: the one that the stage ends with; the next
    one, after its batch norm, in networks that activate first; the stage's output where it is linear."""
    pooled_BW: Tensor
    """What the last layer sees."""


class Norm(NamedTuple):
    """How the channels of a pre-activation are distributed: about N(bias, weight^2)."""

    weight_C: Tensor
    bias_C: Tensor


def norm_of(layer: object) -> Norm:
    """The scale and shift of a batch norm."""
    assert isinstance(layer, nn.BatchNorm2d)
    return Norm(layer.weight.detach(), layer.bias.detach())


@runtime_checkable
class Tapped(Protocol):
    """A network that offers its features."""

    def tapped(self, x_BCHW: Tensor) -> Taps:
        """The pass that `forward` makes, with the same logits, gradients and running statistics."""

    def last_norms(self) -> tuple[Norm, ...]:
        """Of each of `Taps.preacts`: the scales and shifts of the batch norm whose output it is, or of the last
        one that its sum has."""


def no_features(model: nn.Module) -> ValueError:
    """What to raise about a network that offers none."""
    return ValueError(
        f"{type(model).__name__} offers no features to compare; distil its logits with kd, dkd, ikl-kd or gkl-kd, "
        "or take another network"
    )


# --- passes -----------------------------------------------------------------------------------------------


def through(out: Tensor, stages: Sequence[nn.Sequential]) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """`out` after all `stages`, whose last blocks have `before_relu`; and the maps after and before these."""
    maps, preacts = [], []
    for stage in stages:
        last: Any = stage[-1]
        for block in stage[:-1]:
            out = block(out)
        preacts.append(last.before_relu(out))
        out = relu(preacts[-1])
        maps.append(out)
    return out, tuple(maps), tuple(preacts)


def through_activated_first(
    out: Tensor, stages: Sequence[nn.Sequential]
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """`out` after all `stages`, whose blocks start with an activation; the maps after each, and before the next
    activation, which the first block of the next stage has. So there is one pre-activation less than maps."""
    maps, preacts = [], []
    for place, stage in enumerate(stages):
        first: Any = stage[0]
        normed = first.normed(out)
        if place > 0:
            preacts.append(normed)
        out = first.after_norm(out, normed)
        for block in stage[1:]:
            out = block(out)
        maps.append(out)
    return out, tuple(maps), tuple(preacts)
