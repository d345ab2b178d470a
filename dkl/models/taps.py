"""Features on the way to the logits: what objectives that compare features look at.

Shapes: B batch, C channels, H, W the map, W features, K classes.
"""

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn


class Taps(NamedTuple):
    """One pass of a network."""

    logits_BK: Tensor
    maps: tuple[Tensor, ...]
    """(B, C, H, W) after the activation: the stem's, then every stage's."""
    preacts: tuple[Tensor, ...]
    """The same before their activation, for every stage but the stem."""
    pooled_BW: Tensor
    """What the last layer sees."""


@runtime_checkable
class Tapped(Protocol):
    """A network that offers its features."""

    def tapped(self, x_BCHW: Tensor) -> Taps: ...

    def last_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """The batch norm whose output each of `Taps.preacts` is, or is dominated by: its scale and shift say how
        the channel is distributed."""


def tapped(model: nn.Module, x_BCHW: Tensor) -> Taps:
    """`model`'s logits with its features; ValueError where it offers none."""
    return _offering(model).tapped(x_BCHW)


def last_norms(model: nn.Module) -> tuple[nn.BatchNorm2d, ...]:
    """See `Tapped.last_norms`; ValueError where the model offers none."""
    return _offering(model).last_norms()


def _offering(model: nn.Module) -> Tapped:
    if not isinstance(model, Tapped):
        raise ValueError(
            f"{type(model).__name__} offers no features to compare; distil its logits with kd, dkd, ikl-kd or "
            "gkl-kd, or take another network"
        )
    return model
