"""The REST interface, /api/v1: JSON in, JSON out, one shape for every error."""

from collections.abc import AsyncIterator
from typing import Annotated, Any, Self

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import FileResponse, PlainTextResponse, StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, ConfigDict, JsonValue

from dkl.catalog import RECIPES, Named, Published, PublishedAccuracy, named
from service import joblist, jobs, leaderboard, waiting
from service.access import Submitter, needs
from service.joblist import Kind, Status
from service.problems import ANSWERS, Problem
from service.queue import ring
from service.state import state_of
from service.stored import download
from service.submission import JobRequest, submit
from service.tables import Job
from service.web.joblog import written

_UNKNOWN: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "There is no such thing"}}
_CONFLICT: dict[int | str, dict[str, Any]] = {409: {"model": Problem, "description": "Not in this state"}}
_FILE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {}}, "description": "The file; its ETag is its sha256"}
}
_TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {}}, "description": "A line per event"}}
Before = Annotated[str | None, Query(description="Only jobs older than this one, for a next page")]
router = APIRouter(prefix="/api/v1", responses=ANSWERS)


# --- bodies -----------------------------------------------------------------------------------------------


class JobView(BaseModel):
    """A job as clients see it. Times are seconds since the epoch."""

    model_config = ConfigDict(from_attributes=True, use_attribute_docstrings=True)

    id: str
    kind: Kind
    name: str | None
    status: Status
    reason: str | None
    parent_id: str | None
    """The job whose model it waits for."""
    rerun_of: str | None
    """The job that it runs again."""
    queue: str
    priority: int
    gpus: int
    gpu_memory: float
    processes: int
    position: int | None = None
    """In its queue, from 1; absent where it does not wait, and in lists."""
    attempt: int
    losses: int
    """Workers that it cost since it last got any further."""
    workers: list[str]
    """Who is at work on it."""
    progress: dict[str, JsonValue] | None
    result: dict[str, JsonValue] | None
    recipe: dict[str, JsonValue]
    fingerprint: str
    created_at: float
    started_at: float | None
    finished_at: float | None
    then: list["JobView"] = []
    """What was queued together with it; in the answer to that request only."""

    @classmethod
    def of(cls, request: Request, job: Job) -> Self:
        position = waiting.position(state_of(request).db, job)
        return cls.model_validate(job).model_copy(update={"position": position})


class PublishedView(BaseModel):
    """What somebody reports, as fractions; the robust accuracy is under AutoAttack standard."""

    model_config = ConfigDict(from_attributes=True, use_attribute_docstrings=True)

    clean_accuracy: float
    robust_accuracy: float
    source: str
    url: str
    eps: float | None
    """Radius at which it was judged, where that is not the recipe's."""


class PublishedAccuracyView(BaseModel):
    """What somebody reports where nothing is attacked: top-1 accuracies, as fractions."""

    model_config = ConfigDict(from_attributes=True, use_attribute_docstrings=True)

    accuracy: float
    source: str
    url: str
    teacher_accuracy: float | None
    student_accuracy: float | None
    """The student's own, trained without a teacher."""
    many_accuracy: float | None
    medium_accuracy: float | None
    few_accuracy: float | None
    """Means over the classes with more than 100, 20 to 100, and fewer than 20 training images."""
    seconds_per_iteration: float | None


class RecipeView(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    name: str
    kind: Kind
    about: str
    needs: list[str]
    """Fields that have to be given as overrides: an evaluation needs its model, a distillation its teacher."""
    published: PublishedView | PublishedAccuracyView | None
    """Absent where no paper has a row for it."""
    also: list[PublishedView | PublishedAccuracyView]
    """Other numbers in print for the same recipe."""
    recipe: dict[str, JsonValue]

    @classmethod
    def of(cls, name: str, entry: Named) -> Self:
        return cls(
            name=name,
            kind=entry.recipe.kind,
            about=entry.about,
            needs=[entry.needs] if entry.needs else [],
            published=_published(entry.published) if entry.published else None,
            also=[_published(other) for other in entry.also],
            recipe=entry.recipe.model_dump(mode="json"),
        )


def _published(result: Published | PublishedAccuracy) -> PublishedView | PublishedAccuracyView:
    view = PublishedView if isinstance(result, Published) else PublishedAccuracyView
    return view.model_validate(result)


# --- routes -----------------------------------------------------------------------------------------------


@router.post("/jobs", status_code=201, responses=_UNKNOWN)
def create_job(body: JobRequest, request: Request, caller: Submitter) -> JobView:
    """Queue a job, and evaluations and distillations that wait for its model. A job starts as soon as a worker
    that fits is free and the model that it judges or learns from is there."""
    job, *then = submit(state_of(request), body, caller=caller)
    return JobView.of(request, job).model_copy(update={"then": [JobView.of(request, child) for child in then]})


@router.get("/jobs", responses=_UNKNOWN, dependencies=[needs("read")])
def list_jobs(
    request: Request,
    status: Status | None = None,
    kind: Kind | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    before: Before = None,
) -> list[JobView]:
    """The newest jobs, newest first."""
    found = joblist.newest(state_of(request).db, status=status, kind=kind, limit=limit, before=before)
    return [JobView.model_validate(job) for job in found]


@router.get("/jobs/{job_id}", responses=_UNKNOWN, dependencies=[needs("read")])
def get_job(job_id: str, request: Request) -> JobView:
    """One job with its progress and, at the end, its result."""
    return JobView.of(request, jobs.get(state_of(request).db, job_id))


@router.post("/jobs/{job_id}/rerun", status_code=201, responses=_UNKNOWN | _CONFLICT)
def rerun_job(job_id: str, request: Request, caller: Submitter) -> JobView:
    """Queue a new job that runs an ended one again, and is linked to it."""
    state = state_of(request)
    job = jobs.rerun(state.db, job_id, caller=caller, max_queued=state.settings.max_queued)
    ring(state.db, state.settings)
    return JobView.of(request, job)


@router.post("/jobs/{job_id}/resume", responses=_UNKNOWN | _CONFLICT)
def resume_job(job_id: str, request: Request, caller: Submitter) -> JobView:
    """Let a job that failed or was canceled go on where it stopped, as far as that is still kept; otherwise it
    begins anew, and comes to the same. Evaluations that failed because they waited for it wait again, too."""
    state = state_of(request)
    job = jobs.resume(state.db, job_id, caller=caller, max_queued=state.settings.max_queued)
    ring(state.db, state.settings)
    return JobView.of(request, job)


@router.post("/jobs/{job_id}/cancel", responses=_UNKNOWN | _CONFLICT)
def cancel_job(job_id: str, request: Request, caller: Submitter) -> JobView:
    """End a job: at once if it waits, within seconds if it runs. What it waits for is not touched."""
    return JobView.of(request, jobs.cancel(state_of(request).db, job_id, caller=caller))


def _existing_job(job_id: str, request: Request) -> Job:
    return jobs.get(state_of(request).db, job_id)  # before the stream begins: a stream cannot answer 404


@router.get(
    "/jobs/{job_id}/events",
    response_class=EventSourceResponse,
    responses=_UNKNOWN,
    dependencies=[needs("read")],
)
async def job_events(
    job: Annotated[Job, Depends(_existing_job)],
    request: Request,
    last_event_id: Annotated[int, Header(ge=0)] = 0,
) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events, live. All carry an id, and a stream goes on after it with the header Last-Event-ID;
    only progress, which is of the moment, and end, the last one, have none. status is a change of the job's. A
    training or distillation says epoch when one is over, and adjusted when it goes on otherwise than it began, to
    go on at all. An evaluation says joined and left when further workers come to help with it and go. An
    evaluation says batch when one stage is through with one batch of images: which of them stand, and what it
    took; one of common corruptions says corruption when all images were classified under one corruption at one
    severity."""
    async for event in state_of(request).streams.follow(job.id, after=last_event_id):
        yield event


@router.get(
    "/jobs/{job_id}/log",
    response_class=PlainTextResponse,
    responses=_TEXT | _UNKNOWN,
    dependencies=[needs("read")],
)
def job_log(job: Annotated[Job, Depends(_existing_job)], request: Request) -> StreamingResponse:
    """What the job has said so far, as text: when, who, and what happened in a sentence."""
    headers = {"Content-Disposition": f'inline; filename="{job.id}.log"'}
    return StreamingResponse(written(state_of(request).db, job.id), media_type="text/plain", headers=headers)


@router.get(
    "/jobs/{job_id}/evidence",
    response_class=FileResponse,
    responses=_FILE | _UNKNOWN,
    dependencies=[needs("read")],
)
def job_evidence(job_id: str, request: Request) -> FileResponse:
    """What proves an evaluation: per image what broke it, and the adversarial images, as safetensors.
    `dklbench verify` checks it with the model."""
    state = state_of(request)
    return download(state.artifacts, jobs.get(state.db, job_id), "evidence")


@router.get(
    "/jobs/{job_id}/checkpoint",
    response_class=FileResponse,
    responses=_FILE | _UNKNOWN,
    dependencies=[needs("read")],
)
def job_checkpoint(job_id: str, request: Request) -> FileResponse:
    """The model that a job trained, distilled or judged, as safetensors, where it is stored here."""
    state = state_of(request)
    return download(state.artifacts, jobs.get(state.db, job_id), "checkpoint")


@router.get("/recipes", dependencies=[needs("leaderboard")])
def list_recipes() -> list[RecipeView]:
    """Every named recipe."""
    return [RecipeView.of(name, entry) for name, entry in RECIPES.items()]


@router.get("/recipes/{name}", responses=_UNKNOWN, dependencies=[needs("leaderboard")])
def get_recipe(name: str) -> RecipeView:
    """One named recipe: what it does, what the paper reports, and every field."""
    return RecipeView.of(name, named(name))


@router.get("/leaderboard", dependencies=[needs("leaderboard")])
def get_leaderboard(
    request: Request, question: Annotated[leaderboard.Question, Query()]
) -> leaderboard.Leaderboard:
    """The ranking of one board; of the busiest that fits, where the query does not name one."""
    return leaderboard.find(state_of(request).db, question)
