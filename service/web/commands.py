"""A request for a job as what one could type instead: a command of `dklbench`, or curl."""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from dkl.catalog import named
from dkl.imports import Import
from dkl.protocols import AnyProtocol
from service.web.overrides import word

_OPTIONS = {
    "top_k": "--top",
    "queue": "--queue",
    "priority": "--priority",
    "gpus": "--gpus",
    "gpu_memory": "--gpu-memory",
    "webhook": "--webhook",
}
_USUAL_URL = "http://127.0.0.1:8000"
"""Where the command line looks for a service without being told."""


def submit_command(body: Mapping[str, Any], url: str) -> str:
    """`dklbench submit` for this JobRequest of a named recipe to the service at `url`."""
    words = [word(path, value) for path, value in body.get("overrides", {}).items()]
    options = [f"{option} {shlex.quote(str(body[field]))}" for field, option in _OPTIONS.items() if field in body]
    for then in body.get("then", ()):
        changes = [word(path, value) for path, value in then.get("overrides", {}).items()]
        options.append(f"--then {shlex.quote(' '.join([then['name'], *changes]))}")
    return _lines([f"dklbench submit {body['name']}", *map(shlex.quote, words), *options, *_address(url)])


def upload_command(recipe: Import, body: Mapping[str, Any], url: str) -> str | None:
    """`dklbench upload`, or `evaluate` where the model is judged then, for this JobRequest of an import; None
    where neither can ask for all of it."""
    then = body.get("then", ())
    judges = [isinstance(named(one["name"]).recipe, AnyProtocol) for one in then]
    if body.keys() - {"recipe", "then"} or judges not in ([], [True]):
        return None
    changes = recipe.model.model_dump(mode="json", exclude_defaults=True)
    network = json.dumps({"kind": recipe.model.kind, **changes}) if changes else recipe.model.kind
    options = [f"--dataset {shlex.quote(recipe.dataset)}", f"--architecture {shlex.quote(network)}"]
    options += [f"--entry {shlex.quote(recipe.entry)}"] if recipe.entry else []
    if not then:
        return _lines(["dklbench upload FILE", *options, *_address(url)])
    words = [shlex.quote(word(path, value)) for path, value in then[0].get("overrides", {}).items()]
    return _lines(["dklbench evaluate FILE", *words, f"--recipe {then[0]['name']}", *options, *_address(url)])


def curl(body: Mapping[str, Any], url: str, *, with_key: bool) -> str:
    """The request itself; `with_key`: with an API key from the environment."""
    key = ['-H "Authorization: Bearer $DKLBENCH_KEY"'] if with_key else []
    content = [*key, "-H 'Content-Type: application/json'", f"-d {shlex.quote(json.dumps(body))}"]
    return _lines([f"curl {shlex.quote(f'{url}/api/v1/jobs')}", *content])


def _address(url: str) -> list[str]:
    return [] if url == _USUAL_URL else [f"--url {shlex.quote(url)}"]


def _lines(parts: Sequence[str]) -> str:
    """On one line where that is short, else with a part on each."""
    line = " ".join(parts)
    return line if len(line) <= 60 else " \\\n  ".join(parts)
