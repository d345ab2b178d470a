"""How a network is run while it is trained: memory layout, precision, compiled kernels, several processes."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dkl.attacks.pgd import Forward
from dkl.recipes import Fit
from dkl.synchronised import synchronise_batch_norms
from dkl.updates import Network
from dkl.world import World


def make_network(model: nn.Module, recipe: Fit, device: str, world: World) -> Network:
    """`model`, on `device` already, and how to call it as `recipe` asks. Its parameters stay where they are."""
    forward = make_forward(model, recipe, device, world)
    if world.size == 1:
        return Network(model, forward, forward)
    # Statistics are equal in all processes already, so no buffer needs to be sent around.
    shared = DistributedDataParallel(
        model, device_ids=[device] if device.startswith("cuda") else None, broadcast_buffers=False
    )
    shared_forward = _called(_compiled(shared, recipe.compile), recipe.precision, device)
    return Network(model, forward, shared_forward, shared.no_sync)


def make_forward(model: nn.Module, recipe: Fit, device: str, world: World) -> Forward:
    """How to call `model` as `recipe` asks; batch norms see all processes' images, gradients are one's own."""
    model.to(memory_format=torch.channels_last)  # in place; what tensor cores and vector units like best
    if world.size > 1:
        synchronise_batch_norms(model)
    return _called(_compiled(model, recipe.compile), recipe.precision, device)


def _compiled(model: nn.Module, how: Literal["off", "default", "cuda-graphs"]) -> Callable[[Tensor], Tensor]:
    if how == "off":
        return model
    compiled = torch.compile(model, mode="reduce-overhead" if how == "cuda-graphs" else "default")
    if how == "default":
        return compiled
    # A replay writes its output where the one before did, and two of them are compared with each other.
    return lambda x_BCHW: compiled(x_BCHW).clone()


def _called(
    network: Callable[[Tensor], Tensor], precision: Literal["float32", "bfloat16"], device: str
) -> Callable[[Tensor], Tensor]:
    """x_BCHW -> logits_BK in float32, computed in `precision` where autocast finds that safe."""
    if precision == "float32":
        return network

    def forward(x_BCHW: Tensor) -> Tensor:
        with in_precision(precision, device):
            logits_BK = network(x_BCHW)
        return logits_BK.float()

    return forward


def in_precision(precision: Literal["float32", "bfloat16"], device: str) -> AbstractContextManager[object]:
    """Inside, networks compute in `precision` where autocast finds that safe."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)
