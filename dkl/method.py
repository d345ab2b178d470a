"""What makes one kind of training differ from another: the update, and what it keeps beside the network.

Shapes: B batch, C channels, H, W pixels.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from dkl.updates import Network, Update


class Shown(NamedTuple):
    """A batch as it comes, and which one it is."""

    epoch: int
    """From 1."""
    number: int
    """In the epoch, from 0."""
    x_BCHW: Tensor
    """In [0, 1]; of several views all images of the first come first."""
    y_B: Tensor


class Method(Protocol):
    def meet(self, model: nn.Module) -> Iterable[nn.Parameter]:
        """Get ready for this network, in training mode on its device; what is learnt beside it, and thrown away at
        the end. It comes from torch's global generator, which the network's weights came from before."""

    def update(self, network: Network, optimizer: Optimizer, shown: Shown, *, micro_batch: int | None) -> Update:
        """Move the weights once. FloatingPointError instead of the step where the loss is not finite."""

    def eps(self, epoch: int) -> float | None:
        """The radius that is trained against in this epoch."""

    def end_epoch(self) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        """All that changes, but for the network, the optimiser and the averages."""

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def parts(images: int, micro_batch: int | None) -> Iterator[tuple[slice, float]]:
    """The rows of a batch of `images`, at most `micro_batch` at a time, in parts of about equal size, each with
    its share of the batch."""
    count = math.ceil(images / (micro_batch or images))
    for index in range(count):
        rows = slice(images * index // count, images * (index + 1) // count)
        yield rows, (rows.stop - rows.start) / images
