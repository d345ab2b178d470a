"""What somebody is about to submit: a recipe that they change, how to schedule it, and what is to come then."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Engine

from dkl.catalog import RECIPES, named, parse_overrides, resolve
from dkl.explain import Fault, InvalidRecipeError, explain, read_recipe
from dkl.protocols import AnyProtocol
from dkl.recipes import Recipe
from service.jobs import RefusedError
from service.leaderboard import stop_outside_top
from service.submission import JobRequest
from service.web.form_fields import Field, in_use
from service.web.overrides import overrides_of
from service.web.recipe_form import Form, Posted, fraction, recipe_form

ASKED, THEN = "job:", "then:"
"""What the names of those fields begin with that are no part of the recipe."""
_ANY_JOB = {"job": "0" * 12}
"""In place of a model that nobody knows yet."""
_JUDGES = {name: entry for name, entry in RECIPES.items() if isinstance(entry.recipe, AnyProtocol)}


@dataclass(frozen=True)
class Draft:
    """A recipe of the catalogue with changes, or, without a name, the import of an uploaded file.

    What was typed need not be valid anywhere.
    """

    name: str | None
    base: Mapping[str, Any]
    """The recipe without the changes."""
    document: Mapping[str, Any]
    """The recipe with them."""
    asked: Mapping[str, Any]
    """Fields of JobRequest that say how to schedule it."""
    then: Mapping[str, Any]
    """By name the evaluations to queue with it, as {"changes": "images=100"}; None for the others."""
    queues: tuple[str, ...]
    """Those of the service."""

    @property
    def kind(self) -> str:
        return str(self.base["kind"])

    def recipe_fields(self) -> tuple[Field, ...]:
        return recipe_form(self.kind).show(self.document, self.base)

    def asked_fields(self) -> tuple[Field, ...]:
        return _asked_form(self.kind, self.queues).show(self.asked, {})

    def then_fields(self) -> tuple[Field, ...]:
        return _then_form(self.name).show(self.then, {})

    def fields(self) -> tuple[Field, ...]:
        return (*self.recipe_fields(), *self.asked_fields(), *self.then_fields())


def begin(name: str, overrides: Mapping[str, Any], queues: Sequence[str]) -> Draft:
    """The named recipe with `overrides`, and nothing else changed. Raises what resolving them raises."""
    entry = named(name)
    base = entry.recipe.model_dump(mode="json")
    if entry.needs is None or any(path.partition(".")[0] == entry.needs for path in overrides):
        document = resolve(name, overrides).model_dump(mode="json")
    else:
        document = resolve(name, {**overrides, entry.needs: _ANY_JOB}).model_dump(mode="json")
        del document[entry.needs]
    return Draft(name, base, document, {}, {}, tuple(queues))


def begin_import(upload: str, queues: Sequence[str]) -> Draft:
    """The import of the uploaded file with this sha256, about which nothing is said yet."""
    document = {"kind": "import", "upload": upload, "dataset": "", "model": {"kind": "wide-resnet"}}
    return Draft(None, {"kind": "import"}, document, {}, {}, tuple(queues))


def read(name: str | None, posted: Posted, queues: Sequence[str]) -> Draft:
    """What a browser posts; UnknownRecipeError where there is no recipe called `name`."""
    base = named(name).recipe.model_dump(mode="json") if name else {"kind": "import"}
    document = recipe_form(base["kind"]).read(posted)
    asked = _asked_form(base["kind"], tuple(queues)).read(posted)
    return Draft(name, base, document, asked, _then_form(name).read(posted), tuple(queues))


# --- its forms --------------------------------------------------------------------------------------------


@cache
def _asked_form(kind: str, queues: tuple[str, ...]) -> Form:
    schema = JobRequest.model_json_schema()
    others = {"name", "overrides", "recipe", "then", *(() if kind == "evaluate" else ("top_k",))}
    fields = {field: one for field, one in schema["properties"].items() if field not in others}
    fields["queue"] = {**fields["queue"], "anyOf": [{"enum": queues}, {"type": "null"}]}
    return Form({"properties": fields}, prefix=ASKED)


@cache
def _then_form(name: str | None) -> Form:
    """A switch for every evaluation of models like the one that the job leaves, with the changes to it."""
    recipe = named(name).recipe if name else None
    fields = {}
    for judge, entry in _JUDGES.items():
        if recipe is None or (recipe.dataset == entry.recipe.dataset and not isinstance(recipe, AnyProtocol)):
            part = {"properties": {"changes": _CHANGES}}
            fields[judge] = {"anyOf": [part, {"type": "null"}], "default": None, "description": entry.about}
    return Form({"properties": fields}, prefix=THEN)


_CHANGES = {"type": "string", "default": "", "description": "To this evaluation, such as: images=1000 seed=1"}


# --- checked ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checked:
    """What is wrong with a draft, or what it comes to."""

    faults: Sequence[Fault]
    recipe: Recipe | None = None
    """As a worker would get it; None where something is wrong."""
    body: Mapping[str, Any] | None = None
    """What POST /api/v1/jobs takes for it."""


def check(draft: Draft, db: Engine) -> Checked:
    """Everything that can be said without asking the ledger to take the job."""
    asked = {field: value for field, value in draft.asked.items() if value not in (None, _usual(field))}
    recipe, faults = _recipe(draft)
    then, then_faults = _then(draft)
    faults = [*faults, *_asked_faults(asked), *then_faults]
    if recipe is None or faults:
        return Checked(faults)
    body = {**_what(draft, recipe), **asked, **({"then": then} if then else {})}
    try:
        stopped = stop_outside_top(db, recipe, asked["top_k"]) if "top_k" in asked else recipe
    except RefusedError as error:
        return Checked([refusal(error)])
    return Checked([], stopped, body)


def refusal(error: RefusedError) -> Fault:
    """The fault that made the ledger refuse a draft, at the field that its sentence begins with."""
    place, colon, sentence = str(error).partition(": ")
    if not colon or " " in place:
        return Fault("", str(error))
    return Fault(f"{ASKED}{place}" if place in JobRequest.model_fields else place, sentence)


def _usual(field: str) -> Any:
    return JobRequest.model_fields[field].default


def _recipe(draft: Draft) -> tuple[Recipe | None, Sequence[Fault]]:
    try:
        return read_recipe(draft.document), []
    except InvalidRecipeError as error:
        return None, [_said(fault, draft.document) for fault in error.faults]


def _said(fault: Fault, document: Any) -> Fault:
    """Of a field that was left empty, the sentences about what stands in it say nothing."""
    for step in fault.field.split("."):
        document = document.get(step) if isinstance(document, dict) else None
    return Fault(fault.field, "is missing") if document in ("", []) else fault


def _asked_faults(asked: Mapping[str, Any]) -> list[Fault]:
    body = {"name": "any", **asked}
    try:
        JobRequest.model_validate(body)
    except ValidationError as error:
        faults = explain(error.errors(include_url=False), body, JobRequest)
        faults = [_said(fault, body) for fault in faults]
        return [Fault(f"{ASKED}{fault.field}", fault.message) for fault in faults]
    return []


def _then(draft: Draft) -> tuple[list[dict[str, Any]], list[Fault]]:
    """The evaluations to queue with the job, as requests name them."""
    found, faults = [], []
    for judge, typed in draft.then.items():
        if typed is None:
            continue
        try:
            overrides = parse_overrides(typed["changes"].split())
            resolve(judge, {**deepcopy(overrides), "model": _ANY_JOB})
        except InvalidRecipeError as error:
            faults += [Fault(f"{THEN}{judge}", str(fault)) for fault in error.faults]
        except (ValueError, RecursionError) as error:
            faults.append(Fault(f"{THEN}{judge}", str(error)))
        else:
            found.append({"name": judge, **({"overrides": overrides} if overrides else {})})
    return found, faults


def _what(draft: Draft, recipe: Recipe) -> dict[str, Any]:
    """Which recipe it is: by name where it has one, with the overrides that it needs."""
    if draft.name is None:
        return {"recipe": recipe.model_dump(mode="json")}
    overrides = overrides_of(draft.name, recipe)
    for field in in_use(draft.recipe_fields()):
        if field.widget == "pixels" and field.path in overrides:
            overrides[field.path] = fraction(overrides[field.path])
    return {"name": draft.name, **({"overrides": overrides} if overrides else {})}
