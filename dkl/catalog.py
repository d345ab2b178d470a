"""The named recipes: METHOD-DATASET-MODEL[-VARIANT], and autoattack-DATASET-NORM or corruptions-DATASET to judge.

No torch.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from dkl.documents import ThreatModel
from dkl.explain import read_recipe
from dkl.protocols import AnyProtocol, CorruptionProtocol, Protocol
from dkl.recipes import AWP, CNN, IKL, PGD, SGD, Natural, PreActResNet, Recipe, Train, WideResNet


@dataclass(frozen=True)
class Published:
    """What the paper reports for this recipe, as fractions; robust accuracy is under AutoAttack standard."""

    clean_accuracy: float
    robust_accuracy: float
    source: str
    url: str


@dataclass(frozen=True)
class Named:
    """A catalogue entry. What judges still needs its model: submit it with model.job=ID."""

    recipe: Train | AnyProtocol
    about: str
    published: Published | None = None


_LINF_8 = ThreatModel(norm="Linf", eps=8 / 255)
_DIGITS_LINF = ThreatModel(norm="Linf", eps=0.2)
_DKL = "Cui et al., Decoupled Kullback-Leibler Divergence Loss, NeurIPS 2024, Table 2"
_DKL_URL = "https://arxiv.org/abs/2305.13948"

RECIPES: dict[str, Named] = {
    "natural-digits": Named(
        Train(
            dataset="digits",
            model=CNN(),
            objective=Natural(),
            augmentation="none",
            epochs=15,
            optimizer=SGD(lr=0.1),
        ),
        "A small CNN trained on clean handwritten digits; accurate, and defenceless.",
    ),
    "ikl-at-digits": Named(
        Train(
            dataset="digits",
            model=CNN(),
            objective=IKL(),
            threat=_DIGITS_LINF,
            attack=PGD(),
            awp=AWP(),
            augmentation="none",
            epochs=30,
            optimizer=SGD(lr=0.1),
        ),
        "The same CNN trained adversarially with IKL-AT: half a minute on a laptop, and it stands.",
    ),
    "natural-cifar10-preact-resnet-18": Named(
        Train(
            dataset="cifar10",
            model=PreActResNet(),
            objective=Natural(),
            epochs=100,
            optimizer=SGD(lr=0.1),
        ),
        "PreActResNet-18 on clean CIFAR-10: the undefended baseline.",
    ),
    "ikl-at-cifar10-preact-resnet-18": Named(
        Train(
            dataset="cifar10",
            model=PreActResNet(),
            objective=IKL(),
            threat=_LINF_8,
            attack=PGD(loss="kl"),
            awp=AWP(),
            epochs=200,
        ),
        "IKL-AT with the CIFAR-10 settings of the paper on the smaller PreActResNet-18; not a row of the paper.",
    ),
    "ikl-at-cifar10-wrn-34-10": Named(
        Train(
            dataset="cifar10",
            model=WideResNet(depth=34, width=10),
            objective=IKL(ce_weight=4.0),
            threat=_LINF_8,
            attack=PGD(loss="kl"),
            awp=AWP(),
            epochs=200,
        ),
        "The CIFAR-10 row, basic augmentation. The authors' script says ce_weight 4, their log file 3.",
        Published(0.8480, 0.5709, _DKL, _DKL_URL),
    ),
    "ikl-at-cifar100-wrn-34-10": Named(
        Train(
            dataset="cifar100",
            model=WideResNet(depth=34, width=10),
            objective=IKL(ce_weight=5.0),
            threat=_LINF_8,
            attack=PGD(loss="ikl"),
            awp=AWP(),
            epochs=200,
        ),
        "The CIFAR-100 row, basic augmentation. Paper and script say ce_weight 5, a later script's file name 4.",
        Published(0.6576, 0.3191, _DKL, _DKL_URL),
    ),
    "autoattack-digits-linf": Named(
        Protocol(dataset="digits", threat=_DIGITS_LINF, images=100),
        "AutoAttack standard on 100 handwritten digits, Linf 0.2.",
    ),
    "autoattack-cifar10-linf": Named(
        Protocol(dataset="cifar10", threat=_LINF_8),
        "RobustBench's protocol for CIFAR-10 Linf: AutoAttack standard, eps 8/255, all 10,000 test images.",
    ),
    "autoattack-cifar10-l2": Named(
        Protocol(dataset="cifar10", threat=ThreatModel(norm="L2", eps=0.5)),
        "RobustBench's protocol for CIFAR-10 L2: AutoAttack standard, eps 0.5, all 10,000 test images.",
    ),
    "autoattack-cifar100-linf": Named(
        Protocol(dataset="cifar100", threat=_LINF_8),
        "RobustBench's protocol for CIFAR-100 Linf: AutoAttack standard, eps 8/255, all 10,000 test images.",
    ),
    "corruptions-cifar10": Named(
        CorruptionProtocol(dataset="cifar10"),
        "RobustBench's protocol for CIFAR-10-C: 15 common corruptions at 5 severities, all 10,000 test images.",
    ),
    "corruptions-cifar100": Named(
        CorruptionProtocol(dataset="cifar100"),
        "RobustBench's protocol for CIFAR-100-C: 15 common corruptions at 5 severities, all 10,000 test images.",
    ),
    "corruptions-digits": Named(
        CorruptionProtocol(
            dataset="digits",
            source="generated",
            corruptions=("gaussian_noise", "shot_noise", "impulse_noise", "brightness", "contrast"),
        ),
        "The five common corruptions that images of 8 x 8 pixels allow, at 5 severities, generated here.",
    ),
}


class UnknownRecipeError(ValueError):
    """No recipe of that name; the message offers the closest."""


def named(name: str) -> Named:
    """The catalogue entry called `name`; UnknownRecipeError offers the closest names."""
    if name not in RECIPES:
        close = get_close_matches(name, RECIPES, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}?" if close else f"choose from {', '.join(RECIPES)}"
        raise UnknownRecipeError(f"unknown recipe {name!r}; {hint}")
    return RECIPES[name]


def resolve(name: str, overrides: Mapping[str, Any]) -> Recipe:
    """The named recipe with `overrides` ("threat.eps": "4/255") laid over it, validated again.

    A value may be a whole document: "model": {"kind": "wide-resnet"}. Raises UnknownRecipeError, or
    InvalidRecipeError where the result is no recipe.
    """
    document = named(name).recipe.model_dump(mode="json")
    for path, value in overrides.items():
        *parents, field = path.split(".")
        place = document
        for parent in parents:
            if not isinstance(place.get(parent), dict):
                place[parent] = {}
            place = place[parent]
        place[field] = value
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
        overrides[path] = _value(value)
    return overrides


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
