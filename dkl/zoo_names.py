"""The names of RobustBench's model zoo: "cifar10/Linf/NAME". No torch, no network: a list that ships with us.

zoo_names.json says which version it was taken from. Threat models are RobustBench's: Linf, L2, corruptions.
"""

import json
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import NamedTuple

CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}
"""Classes that a model tells apart, by the first part of its name."""


class ZooModel(NamedTuple):
    dataset: str
    threat: str
    name: str
    architecture: str
    """As RobustBench's tables print it."""

    def __str__(self) -> str:
        return f"{self.dataset}/{self.threat}/{self.name}"


class UnknownZooModelError(ValueError):
    """No downloadable model of that name; the message offers the closest."""


def find(name: str) -> ZooModel:
    """The zoo's model called `name`; UnknownZooModelError says what is closest."""
    known, without_weights = _lists()
    if name in known:
        return known[name]
    if name in without_weights:
        raise UnknownZooModelError(
            f"RobustBench lists {name}, but its weights are not in the model zoo; judge a checkpoint of your own"
        )
    raise UnknownZooModelError(f"unknown zoo model {name!r}; {_hint(name, known)}")


def _hint(name: str, known: dict[str, ZooModel]) -> str:
    alone = name.rpartition("/")[2].casefold()
    same = [full for full, model in known.items() if model.name.casefold() == alone]
    parts = [full for full in known if len(alone) > 3 and name.casefold() in full.casefold()]
    spelled = {full.casefold(): full for full in known}
    by_name = {f"{model.name.casefold()} {full}": full for full, model in known.items()}
    close = (
        same
        or parts
        or [spelled[match] for match in get_close_matches(name.casefold(), spelled, n=3, cutoff=0.6)]
        or [by_name[match] for match in get_close_matches(alone, by_name, n=3, cutoff=0.4)]
    )
    if close:
        return f"did you mean {' or '.join(close[:3])}?"
    return "write DATASET/THREAT/NAME such as cifar10/Linf/Wang2023Better_WRN-28-10, as on robustbench.github.io"


@cache
def _lists() -> tuple[dict[str, ZooModel], frozenset[str]]:
    """The models by full name, and the full names on the leaderboard that cannot be downloaded."""
    document = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    models = [
        ZooModel(dataset, threat, name, architecture)
        for board, entries in document["models"].items()
        for dataset, threat in [board.split("/")]
        for name, architecture in entries.items()
    ]
    missing = {f"{board}/{name}" for board, names in document["without_weights"].items() for name in names}
    return {str(model): model for model in models}, frozenset(missing)
