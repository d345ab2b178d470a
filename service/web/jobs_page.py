"""The list of jobs."""

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response

from dkl.datasets import show_name
from service.access import Reader
from service.joblist import Question, find
from service.moves import TERMINAL
from service.outlook import obstacles
from service.roster import roster
from service.state import state_of
from service.tables import STATUSES
from service.web.templating import templates
from service.wording import nth

router = APIRouter(include_in_schema=False)


@router.get("/jobs")
def jobs_page(request: Request, caller: Reader, question: Annotated[Question, Query()]) -> Response:
    state = state_of(request)
    found = find(state.db, question, caller)
    crew = roster(state.db, lease_seconds=state.settings.lease_seconds)
    context = {
        "asked": question,
        "found": found,
        "statuses": [status for status in STATUSES if found.counts.get(status) or status == question.status],
        "places": {
            job.id: f"{nth(place)} in {job.queue}" for job in found.jobs if (place := found.places.get(job.id))
        },
        "obstacles": obstacles(state.db, found.jobs, crew),
        "busy": any(job.status not in TERMINAL for job in found.jobs),
        "named": [(dataset, show_name(dataset)) for dataset in found.datasets],
        "has_key": caller.key_id is not None,
        "jobs_url": lambda **changes: _address(question, **changes),
    }
    is_there = question.page == 1 or found.jobs
    return templates.TemplateResponse(request, "jobs.html", context, 200 if is_there else 404)


def _address(question: Question, **changes: str | int | None) -> str:
    """Of the first page of the same question but for the changes."""
    asked = question.model_dump(exclude_defaults=True, exclude={"page"}) | changes
    query = {name: str(value).lower() if value is True else value for name, value in asked.items() if value}
    return "/jobs" + (f"?{urlencode(query)}" if query else "")
