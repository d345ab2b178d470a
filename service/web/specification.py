"""What an evaluation did, as its recipe says it: every attack with every parameter, and on which images.

Recipes are read as documents, since old ones lack fields that today's have.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dkl.documents import show_pixels
from dkl.suites import AUTOATTACK, SCREEN, Suite
from service.wording import count

_BALLS = {
    "Linf": "every change of each pixel by at most {eps} that stays in [0, 1]",
    "L2": "every change of Euclidean length at most {eps}, with pixels that stay in [0, 1]",
    "L1": "every change whose absolute values sum to at most {eps}, with pixels that stay in [0, 1]",
}
_ENGINES = {"dkl": "dkl-bench's own attacks", "pyautoattack": "the reference, pyautoattack"}
_PARAMETERS = {
    "steps": "Steps",
    "queries": "Queries",
    "restarts": "Restarts",
    "targets": "Targets",
    "eot": "Gradients averaged",
    "large_eps": "Larger radius first",
}
"""In the order of the table's columns."""


class AttackRow(NamedTuple):
    name: str
    values: list[str]
    """One per column of the table; a dash where the attack has no such parameter."""


class AttackTable(NamedTuple):
    title: str
    """Which phase they are of; empty where there is one only."""
    columns: list[str]
    rows: list[AttackRow]


def attack_tables(recipe: Mapping[str, Any]) -> list[AttackTable]:
    """The attacks in the order in which they run; those of a cheap search before those of the suite."""
    norm, suite, policy = recipe["threat"]["norm"], recipe["suite"], recipe.get("policy", "exact")
    versions: dict[str, Suite] = {version: suites[norm] for version, suites in AUTOATTACK.items()}
    attacks = [attack.model_dump() for attack in versions[suite]] if isinstance(suite, str) else suite
    search = [attack.model_dump() for attack in SCREEN[norm]]
    if policy == "screen":
        return [_table("Cheap search", search)]
    if policy == "audited":
        return [
            _table("Cheap search, on every image", search),
            _table("Suite, on a part of the survivors", attacks),
        ]
    return [_table("", attacks)]


def _table(title: str, attacks: Sequence[Mapping[str, Any]]) -> AttackTable:
    used = [name for name in _PARAMETERS if any(_says(attack, name) for attack in attacks)]
    rows = [AttackRow(attack["kind"], [_value(attack.get(name)) for name in used]) for attack in attacks]
    return AttackTable(title, [_PARAMETERS[name] for name in used], rows)


def _says(attack: Mapping[str, Any], name: str) -> bool:
    """Whether the parameter is worth a column: gradients are averaged for randomised models only."""
    value = attack.get(name)
    return value is not None and not (name == "eot" and value == 1) and value is not False


def _value(value: Any) -> str:
    match value:
        case None:
            return "\u2013"
        case bool():
            return "yes" if value else "no"
        case int() | float():
            return count(value)
    return str(value)


def corruptions_of(recipe: Mapping[str, Any], result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The specification of a measurement under common corruptions: names and values, in words."""
    return [
        ("Corruptions", ", ".join(name.replace("_", " ") for name in recipe["corruptions"])),
        ("Severities", ", ".join(map(str, recipe["severities"]))),
        ("Corrupted images", result["source"]),
        ("Test images", _images(recipe, result)),
        ("Preprocessing", _preprocessing(result)),
    ]


def protocol_of(recipe: Mapping[str, Any], result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The rest of the specification: names and values, in words."""
    norm, eps = recipe["threat"]["norm"], recipe["threat"]["eps"]
    others = [radius for radius in recipe.get("curve") or () if radius != eps]
    found = [
        ("Threat model", f"{norm}, eps {show_pixels(eps)}: {_BALLS[norm].format(eps=show_pixels(eps))}"),
        ("Further radii", ", ".join(map(show_pixels, sorted(others)))),
        ("Test images", _images(recipe, result)),
        ("Engine", _engine(recipe, result)),
        ("Precision", f"search in {result.get('precision', 'float32')}; every verdict in float32"),
        ("Preprocessing", _preprocessing(result)),
        ("Seed", str(recipe.get("seed", 0))),
        ("Images together", count(recipe.get("chunk_size", 0)) if recipe.get("chunk_size") else ""),
    ]
    return [(name, value) for name, value in found if value]


def _images(recipe: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    images = count(result["images"])
    if recipe.get("images") is None:
        return f"all {images} of the test split"
    if recipe.get("sample", "first") == "random":
        return f"{images}, a random sample of the test split, drawn with the seed"
    return f"{images}, the first of the test split"


def _engine(recipe: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    # Before recipes named an engine, it was the reference.
    return f"{result['engine']}: {_ENGINES[recipe.get('engine', 'pyautoattack')]}"


def _preprocessing(result: Mapping[str, Any]) -> str:
    found = result.get("preprocessing", "")
    return "none: the model takes pixels in [0, 1]" if found == "none" else found
