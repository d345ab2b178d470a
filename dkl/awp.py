"""Adversarial weight perturbation (Wu et al., arXiv:2004.05884), without a second network."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from dkl.models import batch_mode
from dkl.world import World

Direction = dict[str, Tensor]
"""A shift per weight tensor, by its name."""


def climbed(
    model: nn.Module, losses: Iterable[Callable[[], Tensor]], *, gamma: float, world: World
) -> AbstractContextManager[None]:
    """Inside, the kernels are moved towards a higher sum of `losses`, those of all processes together; `losses` as
    in `kernel_gradients`."""
    gradients = kernel_gradients(model, losses)
    world.sum_(*gradients.values())
    return perturbed(model, ascent_direction(model, gradients), gamma)


def kernel_gradients(model: nn.Module, losses: Iterable[Callable[[], Tensor]]) -> dict[str, Tensor]:
    """The gradient of the sum of `losses`, of convolution and linear kernels: no biases, nothing of batch norms.

    Each loss runs the model, in training mode; running statistics, parameters and their .grad are not touched.
    """
    kernels = {name: w for name, w in model.named_parameters() if w.ndim > 1 and "weight" in name}
    gradients: list[Tensor] = []
    with batch_mode(model):
        for loss in losses:
            part = torch.autograd.grad(loss(), list(kernels.values()))
            gradients = list(part) if not gradients else torch._foreach_add(gradients, part)
    return dict(zip(kernels, gradients, strict=True))


@torch.no_grad()
def ascent_direction(model: nn.Module, gradients: dict[str, Tensor]) -> Direction:
    """Per weight tensor w, the direction of its gradient g with the length of w itself.

        direction = ||w|| / (||g|| + 1e-20) * g

    The authors take the direction from one step of plain gradient ascent; this is its limit without rounding.
    """
    return {
        name: model.get_parameter(name).norm() / (gradient.norm() + 1e-20) * gradient
        for name, gradient in gradients.items()
    }


@contextmanager
def perturbed(model: nn.Module, direction: Direction, gamma: float) -> Iterator[None]:
    """Inside, every kernel is w + gamma * direction, in place; afterwards the same amount is taken off again.

    An optimiser step taken inside therefore starts, after it, from the unperturbed weights.
    """
    _shift(model, direction, gamma)
    try:
        yield
    finally:
        _shift(model, direction, -gamma)


@torch.no_grad()
def _shift(model: nn.Module, direction: Direction, factor: float) -> None:
    if direction:
        weights = [model.get_parameter(name) for name in direction]
        torch._foreach_add_(weights, list(direction.values()), alpha=factor)
