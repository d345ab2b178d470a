"""The numbers of the reference implementation in tests/golden, and the little network they were computed with."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_FILE = Path(__file__).parents[1] / "golden" / "adversarial_training.json"


@cache
def _entries() -> dict[str, dict[str, Any]]:
    return {entry["id"]: entry for entry in json.loads(_FILE.read_text())["entries"]}


def entry(name: str) -> dict[str, Any]:
    return _entries()[name]


def of_kind(kind: str, formula: str = "") -> list[str]:
    """The ids of all entries of one kind whose formula begins with `formula`."""
    return [
        name for name, e in _entries().items() if e["kind"] == kind and e.get("formula", "").startswith(formula)
    ]


def tensor(values: Any) -> Tensor:
    """float64; the file writes "NaN" and "Infinity" as strings."""

    def number(value: Any) -> Any:
        return [number(v) for v in value] if isinstance(value, list) else float(value)

    return torch.tensor(number(values), dtype=torch.float64)


class TinyNet(nn.Module):
    """Flatten(12) -> fc1 Linear(12, 5) -> bn1 -> ReLU -> fc2 Linear(5, 4), in float64."""

    def __init__(self, state: dict[str, Any]) -> None:
        super().__init__()
        self.fc1 = nn.Linear(12, 5)
        self.bn1 = nn.BatchNorm1d(5)
        self.fc2 = nn.Linear(5, 4)
        self.double()
        self.load_state_dict({name: tensor(value) for name, value in state.items()})

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.bn1(self.fc1(x.flatten(1))).relu())


def assert_state(model: nn.Module, expected: dict[str, Any], tolerance: float = 1e-10) -> None:
    """Every entry of the model's state is the expected one."""
    state = model.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            state[name].double(), tensor(value), rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
