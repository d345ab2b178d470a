"""The modes a network can be in while it is used, each as a context that puts everything back."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from dkl.models.swish import SwishWideResNet


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Inside, every module is in eval mode; afterwards each is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def batch_mode(model: nn.Module) -> Iterator[None]:
    """Inside, every module is in training mode, and batch norms use statistics of the batch without keeping them.

    Afterwards each is in the mode it was in. This is the mode in which DM-AT attacks.

    Source: arXiv:2302.04638, its published code.
    """
    frozen = [module for module in model.modules() if not module.training]
    keeping: list[Any] = [module for module in model.modules() if getattr(module, "track_running_stats", False)]
    model.train()
    for module in keeping:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in keeping:
            module.track_running_stats = True
        for module in frozen:
            module.training = False


@contextmanager
def first_update(model: nn.Module) -> Iterator[None]:
    """Inside, the batch norms of a SwishWideResNet keep the statistics of a batch as they are; others are as ever.

    With a momentum of 1 the running statistics start from the first batch, as Haiku's do, and not from 0 and 1.

    Source: arXiv:2302.04638, its published code.
    """
    swish = [module for module in model.modules() if isinstance(module, SwishWideResNet)]
    norms: list[Any] = [
        module for network in swish for module in network.modules() if hasattr(module, "track_running_stats")
    ]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
