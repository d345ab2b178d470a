"""What one sends to queue a job, and what becomes of it: orders to the ledger, checked as far as can be known."""

from dataclasses import replace
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from dkl.catalog import named, resolve
from dkl.documents import Count
from dkl.imports import Import
from dkl.protocols import Checkpoint, Function, Judgement, Zoo
from dkl.recipes import Distill, Recipe
from service import files, jobs, leaderboard
from service.callers import Caller
from service.jobs import LARGEST_PRIORITY, Order, RefusedError
from service.lineage import Maker, needed, why_unfit, why_unfit_of_the_zoo
from service.outbound import check_url
from service.plugin_needs import unheard_of
from service.queue import ring
from service.state import State
from service.tables import Job

_Overrides = dict[str, JsonValue]


class Then(BaseModel):
    """What is done with the model that the job leaves: an evaluation of it, or a distillation that it teaches."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: str
    """A name of GET /api/v1/recipes, of an evaluation or a distillation."""
    overrides: _Overrides = {}
    """Laid over it; its model, or its teacher, is the one that the job leaves."""


class JobRequest(BaseModel):
    """Either a catalogue name with overrides, or a whole recipe; and how to schedule it."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: str | None = None
    """A name of GET /api/v1/recipes."""
    overrides: _Overrides = {}
    """Laid over the named recipe: {"epochs": 2, "threat.eps": "4/255", "model.job": "0123456789ab"}."""
    recipe: Recipe | None = None
    """A whole recipe, instead of a name."""
    top_k: Count | None = None
    """For an evaluation: stop as soon as the model cannot be among the best so many of its board. Written into
    the recipe as stop_below, from the board as it is now; a board with fewer rows stops nothing."""
    then: Annotated[tuple[Then, ...], Field(max_length=20)] = ()
    """Evaluations and distillations that are queued with it, all or none, and wait for its model."""
    queue: str | None = None
    """Which workers may take it; absent: the service's first queue."""
    priority: Annotated[int, Field(ge=-LARGEST_PRIORITY, le=LARGEST_PRIORITY)] = 0
    """Higher ones first; among equals the older job."""
    gpus: Annotated[int, Field(ge=0, le=64)] = 0
    """GPUs that the worker must see."""
    gpu_memory: Annotated[float, Field(ge=0, le=1024, allow_inf_nan=False)] = 0.0
    """GiB that each of them must have."""
    webhook: Annotated[str, Field(max_length=2000)] | None = None
    """An https address that is told, signed, when the job has ended."""

    @model_validator(mode="after")
    def _one_way_only(self) -> Self:
        if (self.name is None) == (self.recipe is None):
            raise ValueError("give either name (with overrides) or recipe")
        if self.recipe is not None and self.overrides:
            raise ValueError("overrides go with name; change the recipe itself instead")
        return self


def submit(state: State, request: JobRequest, *, caller: Caller) -> list[Job]:
    """The job and those that were to come with it, queued; RefusedError, or what resolving raises, and none is."""
    orders = _orders(state, request)
    for order in orders:
        _require_source(state, order.recipe, caller)
        if why := unheard_of(state.db, order.recipe):
            raise RefusedError(why)
    created = jobs.create_all(state.db, orders, caller=caller, max_queued=state.settings.max_queued)
    ring(state.db, state.settings)
    return created


def _orders(state: State, request: JobRequest) -> list[Order]:
    recipe = request.recipe or resolve(request.name or "", request.overrides)
    if request.top_k is not None:
        recipe = leaderboard.stop_outside_top(state.db, recipe, request.top_k)
    if request.then and not isinstance(recipe, Maker):
        raise RefusedError("then: an evaluation leaves no model to judge; put it behind a training or an import")
    order = Order(
        recipe,
        request.name,
        jobs.new_id(),
        queue=_queue(state, request.queue),
        priority=request.priority,
        gpus=request.gpus,
        gpu_memory=request.gpu_memory,
        webhook=_webhook(request.webhook),
    )
    orders = [order]
    for then in request.then:
        field = {"distill": "teacher"}.get(named(then.name).recipe.kind, "model")
        next_ = resolve(then.name, {**then.overrides, field: {"job": order.id}})
        if not isinstance(next_, Judgement | Distill):
            raise RefusedError(
                f"then: {then.name} is no evaluation and no distillation; name one of the catalogue's"
            )
        orders.append(replace(order, recipe=next_, name=then.name, id=None))
    return orders


def _queue(state: State, asked: str | None) -> str:
    queues = state.settings.queues
    if asked is not None and asked not in queues:
        raise RefusedError(f"queue: there is no queue {asked!r}; choose from {', '.join(queues)}")
    return asked or queues[0]


def _webhook(url: str | None) -> str | None:
    if url is not None:
        try:
            check_url(url)
        except ValueError as error:
            raise RefusedError(f"webhook: {error}") from None
    return url


def _require_source(state: State, recipe: Recipe, caller: Caller) -> None:
    """RefusedError where no worker could get what the recipe works on. (The ledger knows the jobs.)"""
    if isinstance(recipe, Import):
        if not files.reserve(state.db, state.artifacts, recipe.upload, caller):
            raise RefusedError(f"upload: no file with sha256 {recipe.upload} is stored here; upload it first")
        return
    if (need := needed(recipe)) is None:
        return
    field, source = need
    match source:
        case Checkpoint(checkpoint=sha256) if not files.reserve(state.db, state.artifacts, sha256, caller):
            raise RefusedError(f"{field}.checkpoint: no checkpoint with sha256 {sha256} is stored here")
        case Checkpoint(checkpoint=sha256):
            _require_known(state, recipe, field, sha256)
        case Zoo() if why := why_unfit_of_the_zoo(recipe):
            raise RefusedError(f"{field}.zoo: {why}")
        case Function() if field == "teacher":
            raise RefusedError(
                f"teacher.function: a service runs no code of its users; learn from {source.function} on your own "
                "machine with `dklbench run`"
            )
        case Function():
            raise RefusedError(f"{field}.function: {source.refusal}")


def _require_known(state: State, recipe: Recipe, field: str, sha256: str) -> None:
    """RefusedError where no job has looked into the stored file, or its data set says that it cannot teach."""
    dataset = files.data_set_of(state.db, sha256)
    if dataset is None:
        raise RefusedError(
            f"{field}.checkpoint: {sha256} was uploaded, but nobody has looked into it yet; import it first: "
            "`dklbench upload`, or a job of the kind import"
        )
    if why := why_unfit(recipe, dataset):
        raise RefusedError(f"{field}.checkpoint: {sha256} {why}")
