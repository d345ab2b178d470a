"""What a changed recipe differs in from the named one, in the words of requests and of the command line."""

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

from dkl.catalog import named, resolve
from dkl.explain import InvalidRecipeError
from dkl.recipes import Recipe

_ABSENT = object()


def overrides_of(name: str, recipe: Recipe) -> dict[str, Any]:
    """The overrides that make `recipe` of the one called `name`: none of them could be left out."""
    base = named(name).recipe.model_dump(mode="json")
    overrides = dict(_differences(base, recipe.model_dump(mode="json"), ""))
    for path in reversed(list(overrides)):
        fewer = {other: value for other, value in overrides.items() if other != path}
        if _makes(name, fewer, recipe):
            overrides = fewer
    return overrides


def _differences(base: Mapping[str, Any], document: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Overrides from the outside to the inside, so that each finds the place that it changes."""
    for key, value in document.items():
        path, old = f"{prefix}{key}", base.get(key, _ABSENT)
        if value == old:
            continue
        if not isinstance(value, dict):
            yield path, value
        else:
            known = old if isinstance(old, dict) else {}
            if "kind" in value and value["kind"] != known.get("kind"):
                known = {}
            elif value.keys() != known.keys():
                if "kind" in value:  # whole, as an empty one has no kind that its fields could follow
                    yield path, value
                    continue
                known = {}
                yield path, {}
            yield from _differences(known, value, f"{path}.")


def _makes(name: str, overrides: dict[str, Any], recipe: Recipe) -> bool:
    try:
        return resolve(name, deepcopy(overrides)) == recipe  # it writes into documents that it is given
    except InvalidRecipeError:
        return False


def word(path: str, value: Any) -> str:
    """The override as it is typed, for `dkl.catalog.parse_overrides`; a shell still wants it quoted."""
    plain = isinstance(value, str) and _is_plain(value)
    return f"{path}={value if plain else json.dumps(value, separators=(',', ':'))}"


def _is_plain(text: str) -> bool:
    """Whether the command line takes it for the text that it is, and not for JSON."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return True
    return False
