"""The commands that make a result again: named recipes with their changes, as one types them."""

import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

from dkl.catalog import RECIPES
from dkl.explain import InvalidRecipeError, read_recipe
from service.lineage import LEARNERS
from service.tables import Job
from service.web.commands import submit_command
from service.web.overrides import overrides_of, word

_WHOSE = {"model.job", "model.checkpoint", "model.zoo", "model.timm", "model.torchvision"}
"""Overrides that say which model is judged."""


class Command(NamedTuple):
    about: str
    line: str


class _Named(NamedTuple):
    """A recipe of the catalogue, with changes."""

    name: str
    overrides: Mapping[str, Any]

    def typed(self) -> str:
        words = [word(path, value) for path, value in self.overrides.items()]
        return " ".join(map(shlex.quote, [self.name, *words]))


def commands_of(job: Job, training: Job | None, url: str) -> list[Command]:
    """For the evaluation `job` of the service at `url`, and the training or import whose model it judged."""
    found = [Command("Run it again here, and compare every number", f"dklbench replay {job.id} --url {url}")]
    asked = _named(job)
    if asked:
        again = submit_command(asked._asdict(), url)
        found.append(Command("Judge the same model again here", again))
    judge = asked and _Named(asked.name, {k: v for k, v in asked.overrides.items() if k not in _WHOSE})
    if judge:
        found.append(Command("Judge it on your own machine", _judged_locally(job, judge)))
    train = _named(training) if training and training.kind in LEARNERS else None
    if train:
        body = {**train._asdict(), "then": [judge._asdict()] if judge else []}
        found.append(Command("Train it again here, and judge it", submit_command(body, url)))
        found.append(Command("Train it on your own machine", f"dklbench run {train.typed()}"))
    return found


def _named(job: Job) -> _Named | None:
    """None where the job's recipe is none of the catalogue, or of a version whose recipes had other fields."""
    if job.name not in RECIPES:
        return None
    try:
        recipe = read_recipe(job.recipe)
    except InvalidRecipeError:
        return None
    return _Named(job.name, overrides_of(job.name, recipe))


def _judged_locally(job: Job, judge: _Named) -> str:
    """A public model by its name, any other as the file that one has downloaded."""
    source = job.recipe["model"]
    kind = next((kind for kind in ("zoo", "timm", "torchvision") if source.get(kind)), None)
    model = f"--{kind} {shlex.quote(source[kind])}" if kind else "--checkpoint model.safetensors"
    return f"dklbench run {judge.typed()} {model}"
