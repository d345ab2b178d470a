"""A teacher: a frozen network, or anything that says what it would.

What a teacher is, is a protocol. `Teacher` makes one of any network that takes pixels in [0, 1] and gives logits,
as every stored checkpoint does; `dkl.zero_shot` makes such a network of an image and a text encoder.

Shapes: B batch, C channels, H, W pixels, K classes.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from dkl.method import Shown
from dkl.models import Norm, Taps, last_norms, tapped
from dkl.weights import LoadedModel


class TeacherLogits(Protocol):
    """Whatever says what the student should say."""

    def logits(self, shown: Shown) -> Tensor:
        """(B, K) in float32, without a gradient, the same for the same batch every time."""


class Teacher:
    """A network in eval mode, its weights and running statistics frozen."""

    def __init__(
        self,
        loaded: LoadedModel,
        forward: Callable[[Tensor], Tensor],
        *,
        dataset: str,
        channels: int,
        classes: int,
    ) -> None:
        """`forward` calls the model in the precision asked for. ValueError where it does not fit the data."""
        pairs = {"classes": (loaded.classes, classes), "channels": (loaded.channels, channels)}
        for what, (found, expected) in pairs.items():
            if found != expected:
                raise ValueError(
                    f"the teacher, {loaded.architecture}, has {found} {what}, {dataset} has {expected}; "
                    "name a teacher that was trained on the same data set"
                )
        self.model: nn.Module = loaded.model.eval().requires_grad_(False)
        self.sha256 = loaded.sha256
        self.architecture = loaded.architecture
        self._forward = forward

    @torch.no_grad()
    def logits(self, shown: Shown) -> Tensor:
        return self._forward(shown.x_BCHW).float()

    @torch.no_grad()
    def tapped(self, x_BCHW: Tensor) -> Taps:
        """Logits with the features on the way to them; ValueError where the network offers none.

        Unlike `logits`, in the precision that the caller is in.
        """
        return tapped(self.model, x_BCHW)

    @torch.no_grad()
    def last_norms(self, x_BCHW: Tensor) -> tuple[Norm, ...]:
        """How its pre-activations are distributed; ValueError where its batch norms do not say that."""
        return last_norms(self.model, x_BCHW)
