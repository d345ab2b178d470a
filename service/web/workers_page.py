"""The page of workers: who is alive, what they are at, and taking one out of service."""

from collections import Counter
from typing import NamedTuple

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from service import registry
from service.access import Admin, needs
from service.roster import Shown, WorkerName, queued, roster
from service.state import state_of
from service.web.templating import templates

router = APIRouter(prefix="/workers", include_in_schema=False)


class QueueRow(NamedTuple):
    name: str
    waiting: int
    """Jobs."""
    workers: int
    """Living ones that serve it and take jobs."""


@router.get("", dependencies=[needs("read")])
def workers_page(request: Request) -> Response:
    state = state_of(request)
    crew = roster(state.db, lease_seconds=state.settings.lease_seconds)
    context = {
        "crew": crew,
        "queues": _queues(crew, queued(state.db)),
        "lease_seconds": state.settings.lease_seconds,
        "forget_seconds": registry.FORGET_SECONDS,
        "celery": bool(state.settings.broker_url),
    }
    return templates.TemplateResponse(request, "workers.html", context)


@router.post("/drain")
def drain(name: WorkerName, request: Request, caller: Admin) -> Response:
    registry.drain(state_of(request).db, name, caller=caller)
    return RedirectResponse("/workers", 303)


@router.post("/resume")
def resume(name: WorkerName, request: Request, caller: Admin) -> Response:
    registry.resume(state_of(request).db, name, caller=caller)
    return RedirectResponse("/workers", 303)


def _queues(crew: list[Shown], waiting: dict[str, int]) -> list[QueueRow]:
    taking = [shown.worker for shown in crew if shown.state in {"idle", "working"}]
    serving = Counter(queue for worker in taking for queue in worker.queues)
    return [QueueRow(name, waiting.get(name, 0), serving[name]) for name in sorted({*serving, *waiting})]
