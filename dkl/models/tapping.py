"""Looking at the features of any network that offers them, whatever is wrapped around it."""

from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from dkl.models import timm_taps
from dkl.models.taps import Norm, Tapped, Taps, no_features


@runtime_checkable
class Prepares(Protocol):
    """A wrapper that does something to the pixels and hands them to `model`."""

    model: nn.Module

    def prepared(self, x_BCHW: Tensor) -> Tensor: ...


def tapped(model: nn.Module, x_BCHW: Tensor) -> Taps:
    """The pass of any network that offers features; ValueError for others."""
    if isinstance(model, Prepares):
        return tapped(model.model, model.prepared(x_BCHW))
    if isinstance(model, Tapped):
        return model.tapped(x_BCHW)
    if timm_taps.is_of_timm(model):
        return timm_taps.tapped(model, x_BCHW)
    raise no_features(model)


def last_norms(model: nn.Module, x_BCHW: Tensor) -> tuple[Norm, ...]:
    """See `dkl.models.taps.Tapped`. `x_BCHW` is an image that the network takes, to find its layers with.

    ValueError for a network that offers none.
    """
    if isinstance(model, Prepares):
        return last_norms(model.model, model.prepared(x_BCHW))
    if isinstance(model, Tapped):
        return model.last_norms()
    if timm_taps.is_of_timm(model):
        return timm_taps.last_norms(model, x_BCHW)
    raise no_features(model)
