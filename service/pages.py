"""The HTML pages: the leaderboard, the jobs, one job. Server-rendered; they work without JavaScript."""

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.templating import Jinja2Templates

from dkl.recipes import Norm, show_pixels
from service import jobs, leaderboard
from service.state import state_of

router = APIRouter(include_in_schema=False)
_templates = Jinja2Templates(directory=Path(__file__).parent / "web" / "templates")
_templates.env.filters["pixels"] = show_pixels


@router.get("/")
def leaderboard_page(
    request: Request,
    dataset: str | None = None,
    norm: Norm | None = None,
    eps: Annotated[float | None, Query(gt=0, allow_inf_nan=False)] = None,
    sort: leaderboard.Sort = "-robust_accuracy",
    search: Annotated[str, Query(max_length=100)] = "",
) -> Response:
    found = leaderboard.find(state_of(request).db, dataset=dataset, norm=norm, eps=eps, sort=sort, search=search)
    return _templates.TemplateResponse(
        request, "leaderboard.html", {"found": found, "sort": sort, "search": search}
    )


@router.get("/jobs")
def jobs_page(request: Request) -> Response:
    return _templates.TemplateResponse(request, "jobs.html", {"jobs": jobs.recent(state_of(request).db)})


@router.get("/jobs/{job_id}")
def job_page(job_id: str, request: Request) -> Response:
    db = state_of(request).db
    job = jobs.get(db, job_id)
    parent = jobs.get(db, job.parent_id) if job.parent_id else None
    return _templates.TemplateResponse(
        request, "job.html", {"job": job, "parent": parent, "events": jobs.events(db, job_id)}
    )


def wants_html(request: Request) -> bool:
    """Whether a browser asked for a page, rather than a program for data."""
    return not request.url.path.startswith("/api/") and "text/html" in request.headers.get("accept", "")


def error_page(request: Request, status: int, sentence: str) -> Response:
    return _templates.TemplateResponse(request, "error.html", {"status": status, "sentence": sentence}, status)
