"""What makes one kind of training differ from another: the update, and what it keeps beside the network.

Shapes: B batch, C channels, H, W pixels.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from dkl.events import StrategyEpoch
from dkl.updates import Network, Update
from dkl.world import ALONE, World


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
        """The radius that no adversarial image of this epoch leaves; None where nothing is attacked, and where
        each image has one of its own and none is cut back to the threat's."""

    def end_epoch(self) -> StrategyEpoch | None:
        """What the epoch was like beside its losses and accuracies, where strategies are learnt."""

    def state_dict(self) -> dict[str, Any]:
        """All that changes, but for the network, the optimiser and the averages."""

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def parts(images: int, micro_batch: int | None, world: World = ALONE) -> Iterator[tuple[slice, float]]:
    """This process's rows of a batch of `images`, at most `micro_batch` at a time, in parts of about equal size,
    each with its share of the batch."""
    own = world.share(images)
    count = own.stop - own.start
    pieces = math.ceil(count / (micro_batch or count))
    for index in range(pieces):
        rows = slice(own.start + count * index // pieces, own.start + count * (index + 1) // pieces)
        yield rows, (rows.stop - rows.start) / images


def add_up_gradients(optimizer: Optimizer, world: World) -> None:
    """Replace the gradients of all that `optimizer` moves by their sums over the processes."""
    learnt = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    world.sum_(*(parameter.grad for parameter in learnt if parameter.grad is not None))
