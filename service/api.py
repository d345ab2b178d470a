"""The REST interface, /api/v1: JSON in, JSON out, one shape for every error."""

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import FileResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, ConfigDict, JsonValue, model_validator

from dkl.catalog import RECIPES, Named, named, resolve
from dkl.documents import Count
from dkl.protocols import AnyProtocol, Checkpoint, Function, JobResult, Judgement, Timm, Zoo
from dkl.recipes import Recipe
from service import jobs, leaderboard
from service.db import Job
from service.problems import Problem
from service.queue import ring
from service.state import State, state_of
from service.stored import download

_INVALID: dict[int | str, dict[str, Any]] = {422: {"model": Problem, "description": "What to change, and where"}}
_UNKNOWN: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "There is no such thing"}}
_CONFLICT: dict[int | str, dict[str, Any]] = {409: {"model": Problem, "description": "Not in this state"}}
_FILE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {}}, "description": "The file; its ETag is its sha256"}
}

router = APIRouter(prefix="/api/v1", responses=_INVALID)


# --- bodies -----------------------------------------------------------------------------------------------


class JobRequest(BaseModel):
    """Either a catalogue name with overrides, or a whole recipe."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: str | None = None
    """A name of GET /api/v1/recipes."""
    overrides: dict[str, JsonValue] = {}
    """Laid over the named recipe: {"epochs": 2, "threat.eps": "4/255", "model.job": "0123456789ab"}."""
    recipe: Recipe | None = None
    """A whole recipe, instead of a name."""
    top_k: Count | None = None
    """For an evaluation: stop as soon as the model cannot be among the best so many of its board. Written into
    the recipe as stop_below, from the board as it is now; a board with fewer rows stops nothing."""

    @model_validator(mode="after")
    def _one_way_only(self) -> Self:
        if (self.name is None) == (self.recipe is None):
            raise ValueError("give either name (with overrides) or recipe")
        if self.recipe is not None and self.overrides:
            raise ValueError("overrides go with name; change the recipe itself instead")
        return self


class JobView(BaseModel):
    """A job as clients see it. Times are seconds since the epoch."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    kind: Literal["train", "evaluate", "corruptions"]
    name: str | None
    status: Literal["queued", "running", "cancelling", "succeeded", "failed", "canceled"]
    reason: str | None
    parent_id: str | None
    attempt: int
    worker: str | None
    progress: dict[str, JsonValue] | None
    result: dict[str, JsonValue] | None
    recipe: dict[str, JsonValue]
    fingerprint: str
    created_at: float
    started_at: float | None
    finished_at: float | None


class PublishedView(BaseModel):
    """What somebody reports, as fractions; the robust accuracy is under AutoAttack standard."""

    model_config = ConfigDict(from_attributes=True, use_attribute_docstrings=True)

    clean_accuracy: float
    robust_accuracy: float
    source: str
    url: str
    eps: float | None
    """Radius at which it was judged, where that is not the recipe's."""


class RecipeView(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    name: str
    kind: Literal["train", "evaluate", "corruptions"]
    about: str
    needs: list[str]
    """Fields that have to be given as overrides: an evaluation needs its model."""
    published: PublishedView | None
    """Absent where no paper has a row for it."""
    also: list[PublishedView]
    """Other numbers in print for the same recipe."""
    recipe: dict[str, JsonValue]

    @classmethod
    def of(cls, name: str, entry: Named) -> Self:
        return cls(
            name=name,
            kind=entry.recipe.kind,
            about=entry.about,
            needs=["model"] if isinstance(entry.recipe, AnyProtocol) else [],
            published=PublishedView.model_validate(entry.published) if entry.published else None,
            also=[PublishedView.model_validate(other) for other in entry.also],
            recipe=entry.recipe.model_dump(mode="json"),
        )


# --- routes -----------------------------------------------------------------------------------------------


@router.post("/jobs", status_code=201, responses=_UNKNOWN)
def create_job(body: JobRequest, request: Request) -> JobView:
    """Queue a job. It starts as soon as a worker is free and, for an evaluation, its model is trained."""
    state = state_of(request)
    recipe = body.recipe or resolve(body.name or "", body.overrides)
    if body.top_k is not None:
        recipe = leaderboard.stop_outside_top(state.db, recipe, body.top_k)
    job = submit(state, recipe, name=body.name)
    return JobView.model_validate(job)


def submit(state: State, recipe: Recipe, *, name: str | None) -> Job:
    if isinstance(recipe, Judgement):
        _require_source(state, recipe.model)
    job = jobs.create(state.db, recipe, name=name)
    ring(state.db, state.settings)
    return job


def _require_source(state: State, source: JobResult | Checkpoint | Zoo | Timm | Function) -> None:
    """RefusedError where no worker could get this model. (The ledger knows the jobs.)"""
    match source:
        case Checkpoint(checkpoint=sha256) if not state.artifacts.has(sha256):
            raise jobs.RefusedError(f"model.checkpoint: no checkpoint with sha256 {sha256} is stored here")
        case Function():
            raise jobs.RefusedError(f"model.function: {source.refusal}")


@router.get("/jobs")
def list_jobs(
    request: Request,
    status: Literal["queued", "running", "cancelling", "succeeded", "failed", "canceled"] | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> list[JobView]:
    """The newest jobs, newest first."""
    found = jobs.recent(state_of(request).db, status=status, limit=limit)
    return [JobView.model_validate(job) for job in found]


@router.get("/jobs/{job_id}", responses=_UNKNOWN)
def get_job(job_id: str, request: Request) -> JobView:
    """One job with its progress and, at the end, its result."""
    return JobView.model_validate(jobs.get(state_of(request).db, job_id))


@router.post("/jobs/{job_id}/cancel", responses=_UNKNOWN | _CONFLICT)
def cancel_job(job_id: str, request: Request) -> JobView:
    """End a job: at once if it waits, within seconds if it runs. What it waits for is not touched."""
    return JobView.model_validate(jobs.cancel(state_of(request).db, job_id))


def _existing_job(job_id: str, request: Request) -> Job:
    return jobs.get(state_of(request).db, job_id)  # before the stream begins: a stream cannot answer 404


@router.get("/jobs/{job_id}/events", response_class=EventSourceResponse, responses=_UNKNOWN)
async def job_events(
    job: Annotated[Job, Depends(_existing_job)],
    request: Request,
    last_event_id: Annotated[int, Header(ge=0)] = 0,
) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events, live. status, started, epoch, adjusted, batch, corruption, finished carry an id; a
    stream goes on after it with the header Last-Event-ID; progress is of the moment; end is the last one. A
    training says epoch when one is over, and adjusted when it goes on otherwise than it began, to go on at all. An
    evaluation says batch when one stage is through with one batch of images: which of them stand, and what it
    took; one of common corruptions says corruption when all images were classified under one corruption at one
    severity."""
    async for event in state_of(request).streams.follow(job.id, after=last_event_id):
        yield event


@router.get("/jobs/{job_id}/evidence", response_class=FileResponse, responses=_FILE | _UNKNOWN)
def job_evidence(job_id: str, request: Request) -> FileResponse:
    """What proves an evaluation: per image what broke it, and the adversarial images, as safetensors.
    `dklbench verify` checks it with the model."""
    state = state_of(request)
    return download(state.artifacts, jobs.get(state.db, job_id), "evidence")


@router.get("/jobs/{job_id}/checkpoint", response_class=FileResponse, responses=_FILE | _UNKNOWN)
def job_checkpoint(job_id: str, request: Request) -> FileResponse:
    """The model that a job trained or judged, as safetensors, where it is stored here."""
    state = state_of(request)
    return download(state.artifacts, jobs.get(state.db, job_id), "checkpoint")


@router.get("/recipes")
def list_recipes() -> list[RecipeView]:
    """Every named recipe."""
    return [RecipeView.of(name, entry) for name, entry in RECIPES.items()]


@router.get("/recipes/{name}", responses=_UNKNOWN)
def get_recipe(name: str) -> RecipeView:
    """One named recipe: what it does, what the paper reports, and every field."""
    return RecipeView.of(name, named(name))


@router.get("/leaderboard")
def get_leaderboard(
    request: Request, question: Annotated[leaderboard.Question, Query()]
) -> leaderboard.Leaderboard:
    """The ranking of one board; of the busiest that fits, where the query does not name one."""
    return leaderboard.find(state_of(request).db, question)
