"""The list of jobs."""

from fastapi import APIRouter, Request, Response

from service import jobs
from service.access import needs
from service.moves import TERMINAL
from service.outlook import obstacles
from service.roster import roster
from service.state import state_of
from service.web.templating import templates

router = APIRouter(include_in_schema=False)


@router.get("/jobs", dependencies=[needs("read")])
def jobs_page(request: Request) -> Response:
    state = state_of(request)
    db = state.db
    newest = jobs.recent(db)
    known = {job.id: job for job in newest}
    parents = {
        job.parent_id: known.get(job.parent_id) or jobs.get(db, job.parent_id) for job in newest if job.parent_id
    }
    context = {
        "jobs": newest,
        "parents": parents,
        "obstacles": obstacles(db, newest, roster(db, lease_seconds=state.settings.lease_seconds)),
        "busy": any(job.status not in TERMINAL for job in newest),
    }
    return templates.TemplateResponse(request, "jobs.html", context)
