"""The REST interface around workers: which there are, and taking one out of service."""

from typing import Any, Self

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict

from service import registry
from service.access import Admin, needs
from service.problems import ANSWERS, Problem
from service.roster import Shown, WorkerName, WorkerState, roster
from service.state import State, state_of

router = APIRouter(prefix="/api/v1/workers", responses=ANSWERS)
_UNKNOWN: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "There is no such worker"}}


class WorkerRequest(BaseModel):
    """Which worker. Its name is in the body because names hold slashes, which proxies change in addresses."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: WorkerName
    """Of GET /api/v1/workers."""


class WorkerView(BaseModel):
    """A worker as clients see it. Times are seconds since the epoch, by the database's clock."""

    model_config = ConfigDict(from_attributes=True, use_attribute_docstrings=True)

    name: str
    host: str
    pid: int
    device: str
    """What its GPUs are called, or the processor."""
    gpus: int
    gpu_memory: float
    """GiB of the smallest of its GPUs; 0 without."""
    processes: int
    """The most that may train together on it."""
    versions: dict[str, str]
    queues: list[str]
    plugins: dict[str, str]
    """Package and version of what is installed there beside our own code, by "model:NAME" or "objective:NAME"."""
    state: WorkerState
    """silent: no heartbeat for a whole lease. draining: takes nothing more; without jobs it may be stopped."""
    draining: bool
    """Whether it is to take nothing more; a silent one may be, too."""
    jobs: list[str]
    """Ids of the jobs that it is at, the longest first."""
    gpu_use: float | None
    """Fraction of the last moments in which its GPUs computed; absent without."""
    gpu_memory_used: float | None
    """GiB, of all its GPUs together."""
    started_at: float
    beat_at: float
    """Its last heartbeat."""
    seconds_since_beat: float

    @classmethod
    def of(cls, shown: Shown) -> Self:
        told = {name: getattr(shown.worker, name) for name in cls.model_fields if hasattr(shown.worker, name)}
        jobs = [job.id for job in shown.jobs]
        return cls(**told, state=shown.state, jobs=jobs, seconds_since_beat=shown.seconds_since_beat)


@router.get("", dependencies=[needs("read")])
def list_workers(request: Request) -> list[WorkerView]:
    """Every worker that was heard of within a week, silent ones last."""
    return _views(state_of(request))


@router.post("/drain", responses=_UNKNOWN)
def drain_worker(body: WorkerRequest, request: Request, caller: Admin) -> WorkerView:
    """Let a worker finish what it has and take nothing more, until it is resumed. It may be stopped when its list
    of jobs is empty."""
    state = state_of(request)
    return _view(state, registry.drain(state.db, body.name, caller=caller).name)


@router.post("/resume", responses=_UNKNOWN)
def resume_worker(body: WorkerRequest, request: Request, caller: Admin) -> WorkerView:
    """Let a worker take jobs again."""
    state = state_of(request)
    return _view(state, registry.resume(state.db, body.name, caller=caller).name)


def _views(state: State) -> list[WorkerView]:
    return [WorkerView.of(shown) for shown in roster(state.db, lease_seconds=state.settings.lease_seconds)]


def _view(state: State, name: str) -> WorkerView:
    found = next((view for view in _views(state) if view.name == name), None)
    if found is None:
        raise registry.UnknownWorkerError(f"worker {name!r} has shut down in this moment")
    return found
