"""The numbers of the distillation references in tests/golden/distillation.json."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_FILE = Path(__file__).parents[1] / "golden" / "distillation.json"


@cache
def _entries() -> dict[str, dict[str, Any]]:
    return {entry["id"]: entry for entry in json.loads(_FILE.read_text())["entries"]}


def entry(name: str) -> dict[str, Any]:
    return _entries()[name]


def names(prefix: str) -> list[str]:
    return [name for name in _entries() if name.startswith(prefix)]


def tensor(value: Any) -> Tensor:
    """As the file's dtype says; a plain number as float64."""
    if isinstance(value, dict):
        return torch.tensor(value["data"], dtype=getattr(torch, value["dtype"])).reshape(value["shape"])
    return torch.tensor(value, dtype=torch.float64)


def inputs(e: dict[str, Any], *names: str) -> list[Tensor]:
    """The inputs of these names; floating ones want gradients."""
    found = [tensor(e["inputs"][name]) for name in names]
    return [value.requires_grad_() if value.is_floating_point() else value for value in found]


def stages(e: dict[str, Any], stem: str) -> list[Tensor]:
    """stem, or stem_0, stem_1, ...: the maps of a pyramid; they want gradients."""
    found = [name for name in e["inputs"] if name == stem or name.removeprefix(f"{stem}_").isdigit()]
    return inputs(e, *sorted(found))


def assert_golden(e: dict[str, Any], loss: Tensor, gradients: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    """The loss, and its gradient in each named input, are the reference's."""
    torch.testing.assert_close(loss.double(), tensor(e["outputs"]["loss"]), rtol=tolerance, atol=tolerance)
    found = torch.autograd.grad(loss, list(gradients.values()), materialize_grads=True)
    for name, gradient in zip(gradients, found, strict=True):
        expected = tensor(e["outputs"][f"grad_{name}"])
        torch.testing.assert_close(
            gradient, expected, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
