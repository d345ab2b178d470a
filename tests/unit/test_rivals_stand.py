"""LBGAT and DAJAT on digits: they learn, and stand against PGD where natural training falls.

Their updates are compared with the authors' in test_lbgat.py and test_dajat.py.
"""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from dkl.catalog import resolve
from dkl.datasets import load
from dkl.recipes import Train
from dkl.train import train
from dkl.validation import Accuracies, Judge
from dkl.weights import load_checkpoint

EPS = 0.15


def judged(name: str, **changes: Any) -> Accuracies:
    """The checkpoint that a recipe leaves, clean and under PGD with 20 steps on the test images."""
    recipe = resolve(name, {path.replace("__", "."): value for path, value in changes.items()})
    judge = resolve("trades-digits", {"threat.eps": EPS, "validation.steps": 20})
    assert isinstance(recipe, Train)
    assert isinstance(judge, Train)
    with TemporaryDirectory() as folder:
        list(train(recipe, Path(folder), device="cpu", data_dir=Path(folder)))
        model = load_checkpoint(Path(folder) / "model.safetensors").model
        test = load("digits", "test", Path(folder))
        return Judge(judge, test, "cpu").accuracies(model, model.state_dict())


SMALL = {"model__width": 8, "averaging": None, "batch_size": 64}
DEFENDED = {**SMALL, "threat__eps": EPS, "attack__eps_schedule": "constant"}


@cache
def natural() -> Accuracies:
    return judged("natural-digits", **SMALL, epochs=8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("lbgat-digits", {"objective__teacher__width": 8, "attack__steps": 3, "epochs": 12}),
        ("dajat-digits", {"objective__views": 1, "epochs": 8}),
    ],
)
def test_they_stand_where_natural_training_falls(name: str, changes: dict[str, Any]) -> None:
    found = judged(name, **DEFENDED, **changes)
    assert found.clean > 0.8
    assert found.robust is not None
    assert natural().robust is not None
    assert found.robust > natural().robust + 0.2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lbgat-digits", "dajat-digits"])
def test_the_catalogue_s_recipes_stand(name: str) -> None:
    found = judged(name)
    assert found.clean > 0.9
    assert found.robust is not None
    assert natural().robust is not None
    assert found.robust > natural().robust + 0.2
