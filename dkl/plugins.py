"""Code that the operator has installed beside ours, found by its entry points: networks and objectives. No torch.

A package offers a class under a name, in its pyproject.toml:

    [project.entry-points."dklbench.models"]
    patch-mlp = "my_package:PatchMLP"

The class is called with the recipe's arguments; what it makes is configured, and knows how to build a network
(`dkl.models.plugin_network`) or what to minimise (`dkl.plugin_objective`). docs/plugins.md has the whole story.
A name says which code runs here, never what it does: recipes cannot bring code along.
"""

import json
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ValidationError

Kind = Literal["model", "objective"]
GROUPS: dict[Kind, str] = {"model": "dklbench.models", "objective": "dklbench.objectives"}
"""The entry points that are looked for."""


class PluginError(ValueError):
    """The plugin is missing, broken or misunderstood; the message says what to do."""


class Offer(NamedTuple):
    """What an installed package offers under a name."""

    entry: EntryPoint
    package: str
    """The distribution, as pip calls it."""
    version: str

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


def key(kind: Kind, name: str) -> str:
    """How a plugin is called where models and objectives stand side by side: "model:patch-mlp"."""
    return f"{kind}:{name}"


def installed() -> dict[str, str]:
    """What is offered here: package and version by `key`. Nothing is imported."""
    return {key(kind, name): str(offers[0]) for kind in GROUPS for name, offers in _offers(kind).items()}


def find(kind: Kind, name: str) -> Offer:
    """The offer called `name`; PluginError where there is none, or more than one."""
    offers = _offers(kind)
    match offers.get(name, []):
        case [only]:
            return only
        case []:
            raise PluginError(f"no installed package offers the {kind} {name!r}; {_way_out(kind, list(offers))}")
        case several:
            packages = ", ".join(sorted(str(offer) for offer in several))
            raise PluginError(f"several packages offer the {kind} {name!r}: {packages}; uninstall all but one")


def _way_out(kind: Kind, names: list[str]) -> str:
    known = f"known are {', '.join(sorted(names))}; " if names else ""
    return f"{known}install the package that has it (entry point {GROUPS[kind]!r}) on this machine"


def _offers(kind: Kind) -> dict[str, list[Offer]]:
    found: dict[str, list[Offer]] = {}
    for entry in entry_points(group=GROUPS[kind]):
        if entry.dist is not None:
            found.setdefault(entry.name, []).append(Offer(entry, entry.dist.name, entry.dist.version))
    return found


def configured(kind: Kind, name: str, arguments: Mapping[str, Any]) -> Any:
    """The offered class, called with `arguments`. The same arguments get the same object, in one process.

    PluginError where it cannot be had, or does not take them.
    """
    return _configured(kind, name, json.dumps(arguments, sort_keys=True))


@lru_cache(maxsize=32)
def _configured(kind: Kind, name: str, arguments: str) -> Any:
    offer = find(kind, name)
    with telling(kind, name, "cannot be imported"):
        offered = offer.entry.load()
    if not callable(offered):
        raise PluginError(f"the {kind} {name!r} of {offer} is a {type(offered).__name__}; let it be a class")
    given = json.loads(arguments)
    _require_fields(kind, name, offered, given)
    try:
        return offered(**given)
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise PluginError(f"arguments of the {kind} {name!r}: {'; '.join(faults)}") from error
    except (TypeError, ValueError) as error:
        raise PluginError(f"arguments of the {kind} {name!r}: {error}") from error


def _require_fields(kind: Kind, name: str, offered: Any, given: Mapping[str, Any]) -> None:
    """A pydantic model ignores what it does not know unless it is told otherwise; here that would be a typing
    mistake that nobody notices."""
    if not isinstance(offered, type) or not issubclass(offered, BaseModel):
        return
    if unknown := sorted(given.keys() - offered.model_fields.keys()):
        fields = ", ".join(offered.model_fields) or "none"
        raise PluginError(
            f"arguments of the {kind} {name!r}: there is no {unknown[0]!r}; the arguments are {fields}"
        )


@contextmanager
def telling(kind: Kind, name: str, what: str) -> Iterator[None]:
    """Inside, what the plugin's own code raises becomes a PluginError that says where; memory is not its fault."""
    try:
        yield
    except (PluginError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}, line {last.lineno}"
        said = (str(error).splitlines() or ["without a message"])[0]
        offer = find(kind, name)
        raise PluginError(
            f"the {kind} {name!r} of {offer} {what}: {type(error).__name__}: {said} ({where}); mend the package"
        ) from error
