"""Asking a model questions and leaving no trace: of the process and of the model everything is put back."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from dkl.verify import ieee_float32


class _Kept:
    """What a model was before."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._training = {module: module.training for module in model.modules()}
        self._parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
        self._tensors = snapshot(model)

    def set_gradients_aside(self) -> None:
        """So that nothing is added to them."""
        for parameter, _, _ in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def put_back(self) -> None:
        for module, training in self._training.items():
            module.training = training
        for parameter, requires_grad, grad in self._parameters:
            parameter.requires_grad_(requires_grad).grad = grad
        now = _tensors(self._model)
        for name, (tensor, value) in self._tensors.items():
            if not _same(tensor, value):
                tensor.copy_(value)
            if now.get(name) is not tensor:
                path, _, own = name.rpartition(".")
                setattr(self._model.get_submodule(path), own, tensor)


Snapshot = dict[str, tuple[Tensor, Tensor]]
"""Per name of a parameter or buffer the tensor itself, and a copy of its value."""


def snapshot(model: nn.Module) -> Snapshot:
    return {name: (tensor, tensor.detach().clone()) for name, tensor in _tensors(model).items()}


def changes(model: nn.Module, since: Snapshot) -> list[str]:
    """Names of the parameters and buffers that are new, are other tensors or have another value."""
    now = _tensors(model)
    return [
        *(name for name in now if name not in since),
        *(n for n, (tensor, value) in since.items() if now.get(n) is not tensor or not _same(tensor, value)),
    ]


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@torch.no_grad()
def _same(a: Tensor, b: Tensor) -> bool:
    """Equal in every element, where a NaN equals a NaN."""
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


@contextmanager
def in_custody(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside, float32 is IEEE's and nothing casts it; afterwards generators, modes and `model` are as before.

    That is: the generators of torch (of the CPU and of `device`), numpy and Python; whether autograd records; and
    of the model its weights and buffers, which of its modules train, which weights need gradients, and theirs.
    """
    kept = _Kept(model)
    python, legacy = random.getstate(), np.random.get_state()
    devices = [device.index or 0] if device.type == "cuda" else []
    kept.set_gradients_aside()
    try:
        with (
            torch.random.fork_rng(devices),
            torch.inference_mode(False),
            torch.autocast(device.type, enabled=False),
            ieee_float32(),
        ):
            yield
    finally:
        kept.put_back()
        random.setstate(python)
        np.random.set_state(legacy)
