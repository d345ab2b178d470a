"""Weights in a file before they are sent: what they are of, and which recipe judges them. No torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dkl.catalog import RECIPES, named
from dkl.datasets import check_name, known_dataset
from dkl.explain import read_recipe
from dkl.headers import HeaderError, read_header
from dkl.protocols import AnyProtocol, Protocol


def import_of(
    path: Path, *, architecture: Mapping[str, Any] | None, dataset: str | None, entry: str | None
) -> dict[str, Any]:
    """The recipe that makes a checkpoint of the file, except for its sha256, which stands as zeros under "upload".

    A checkpoint of ours says itself what it is of; of other weights both have to be given. ValueError with a
    sentence for what is missing or wrong.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    said = _said(path)
    network = architecture or said.get("architecture")
    learnt_from = dataset or said.get("dataset")
    missing = [name for name, value in (("architecture", network), ("dataset", learnt_from)) if not value]
    if missing:
        options = {
            "architecture": "--architecture 'wide-resnet depth=28 width=10'",
            "dataset": "--dataset cifar10",
        }
        raise ValueError(
            f"{path} does not say of which {' and '.join(missing)} its weights are; say so: "
            f"{' '.join(options[name] for name in missing)}"
        )
    document = {
        "kind": "import",
        "upload": "0" * 64,
        "dataset": check_name(str(learnt_from)),
        "model": dict(network or {}),
        "entry": entry,
    }
    read_recipe(document)
    return document


def _said(path: Path) -> dict[str, Any]:
    """What the file says of itself; {} where it is no checkpoint of ours. The service looks at all of it again."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with path.open("rb") as file:
            said = json.loads(read_header(file).metadata["dkl"])
    except (HeaderError, KeyError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def judge_of(dataset: str) -> str:
    """The evaluation that a model of this data set is meant for; ValueError with the choices where there is
    none."""
    tested = known_dataset(dataset)
    for name, entry in RECIPES.items():
        recipe = entry.recipe
        if isinstance(recipe, Protocol) and tested:
            known = known_dataset(recipe.dataset)
            # A long-tailed training set has the test images of the whole one.
            if known and (known.class_names, known.test_images) == (tested.class_names, tested.test_images):
                return name
    raise ValueError(
        f"no recipe judges models of {dataset}; name one with --recipe, and its data with dataset={dataset}: "
        f"{_choices()}"
    )


def judge_of_the_zoo(name: str) -> str:
    """The evaluation that a model of RobustBench's zoo is meant for; ValueError where no recipe is."""
    from dkl import zoo_names

    model = zoo_names.find(name)
    threat = model.threat.lower()
    meant = f"{threat}-{model.dataset}" if threat == "corruptions" else f"autoattack-{model.dataset}-{threat}"
    if meant not in RECIPES:
        raise ValueError(f"no recipe judges {name} as RobustBench does; name one with --recipe: {_choices()}")
    return meant


def require_judge(name: str) -> None:
    """ValueError where the recipe of this name does not judge a model."""
    if not isinstance(named(name).recipe, AnyProtocol):
        raise ValueError(f"{name} trains a model of its own; name an evaluation: {_choices()}")


def _choices() -> str:
    return ", ".join(name for name, entry in RECIPES.items() if isinstance(entry.recipe, AnyProtocol))
