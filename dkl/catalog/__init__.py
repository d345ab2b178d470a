"""The named recipes: METHOD-DATASET-MODEL[-NORM][-VARIANT], METHOD-DATASET-TEACHER-STUDENT[-VARIANT] of
distillation, and autoattack-DATASET-NORM, corruptions-DATASET.

No torch. Each family is a file: what its recipes share is a function there, what differs stands beside the name.
"""

import json
from collections.abc import Mapping
from copy import deepcopy
from difflib import get_close_matches
from typing import Any

from dkl.catalog.dajat import DAJAT_RECIPES
from dkl.catalog.digits import DIGITS
from dkl.catalog.distillation import DISTILLATION
from dkl.catalog.dkl_papers import DKL_PAPERS
from dkl.catalog.entries import Named, Needs, Published, PublishedAccuracy
from dkl.catalog.generated import GENERATED
from dkl.catalog.judges import JUDGES
from dkl.catalog.las import LAS
from dkl.catalog.lbgat import LBGAT_RECIPES
from dkl.catalog.long_tailed import LONG_TAILED
from dkl.catalog.perturbed import PERTURBED
from dkl.catalog.rivals import RIVALS
from dkl.catalog.robust_distillation import ROBUST_DISTILLATION
from dkl.explain import read_recipe
from dkl.recipes import Recipe

__all__ = [
    "RECIPES",
    "Named",
    "Needs",
    "Published",
    "PublishedAccuracy",
    "UnknownRecipeError",
    "named",
    "parse_overrides",
    "resolve",
]

RECIPES: dict[str, Named] = {
    **DIGITS,
    **DKL_PAPERS,
    **GENERATED,
    **RIVALS,
    **PERTURBED,
    **LBGAT_RECIPES,
    **DAJAT_RECIPES,
    **LAS,
    **DISTILLATION,
    **LONG_TAILED,
    **ROBUST_DISTILLATION,
    **JUDGES,
}


class UnknownRecipeError(ValueError):
    """No recipe of that name; the message offers the closest."""


def named(name: str) -> Named:
    """The catalogue entry called `name`; UnknownRecipeError offers the closest names."""
    if name not in RECIPES:
        close = get_close_matches(name, RECIPES, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}?" if close else "choose from what `dklbench recipes` lists"
        raise UnknownRecipeError(f"unknown recipe {name!r}; {hint}")
    return RECIPES[name]


def resolve(name: str, overrides: Mapping[str, Any]) -> Recipe:
    """The named recipe with `overrides` ("threat.eps": "4/255") laid over it, validated again.

    A value may be a whole document: "model": {"kind": "wide-resnet"}. What becomes another kind ("objective.kind":
    "trades") starts from that kind's defaults. Raises UnknownRecipeError, or InvalidRecipeError where the result
    is no recipe.
    """
    document = named(name).recipe.model_dump(mode="json")
    for path, value in sorted(overrides.items(), key=lambda item: not item[0].endswith(".kind")):
        *parents, field = path.split(".")
        place = document
        for parent in parents:
            if not isinstance(place.get(parent), dict):
                place[parent] = {}
            place = place[parent]
        if parents and field == "kind" and place.get("kind") != value:
            place.clear()
        place[field] = deepcopy(value)
    return read_recipe(document)


def parse_overrides(words: list[str]) -> dict[str, Any]:
    """What `resolve` takes, from words as they are typed: ["threat.eps=4/255", "epochs=2"].

    A value is JSON where it can be read as such, else text. ValueError for a word that is no PATH=VALUE.
    """
    overrides = {}
    for word in words:
        path, equals, value = word.partition("=")
        if not equals or not all(path.split(".")):
            raise ValueError(f"{word!r} is no change to a recipe; write PATH=VALUE, such as epochs=2")
        # An id may consist of digits alone.
        overrides[path] = value if path.rpartition(".")[2] in _IDS else _value(value)
    return overrides


_IDS = frozenset({"job", "checkpoint", "upload"})


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
