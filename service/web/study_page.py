"""Studies: the list of them, the page of one with published beside measured, and its picture as a file."""

from typing import NamedTuple

from fastapi import APIRouter, Request, Response

from service import studies
from service.access import needs
from service.leaderboard import NothingThereError
from service.state import state_of
from service.study_views import StudyRow, StudyView
from service.web.commands import submit_command
from service.web.dots import svg_file
from service.web.study_chart import picture
from service.web.templating import templates

router = APIRouter(prefix="/studies", include_in_schema=False, dependencies=[needs("leaderboard")])


class Shown(NamedTuple):
    """A row, and the command that asks for it."""

    row: StudyRow
    command: str


@router.get("")
def studies_page(request: Request) -> Response:
    return templates.TemplateResponse(request, "studies.html", {"studies": studies.every(state_of(request).db)})


@router.get("/{name}.svg")
def study_picture(name: str, request: Request) -> Response:
    found = studies.find(state_of(request).db, name)
    plot = picture(found)
    if plot is None:
        raise NothingThereError("no row of this study is judged yet, so there is nothing to draw; come back later")
    return svg_file(plot, f"table-{found.name}.svg")


@router.get("/{name}")
def study_page(name: str, request: Request) -> Response:
    found = studies.find(state_of(request).db, name)
    url = str(request.base_url).rstrip("/")
    context = {
        "study": found,
        "shown": [Shown(row, submit_command(_body(row), url)) for row in found.rows],
        "picture": picture(found),
        "same_data": found.dataset == found.published_dataset,
        "open": _goes_on(found),
        "url": url,
    }
    return templates.TemplateResponse(request, "study.html", context)


def _body(row: StudyRow) -> dict[str, object]:
    """The request for the row's training and the evaluation of its model."""
    return {
        "name": row.recipe,
        "overrides": row.overrides,
        "then": [{"name": row.judge, "overrides": row.judge_overrides}],
    }


def _goes_on(found: StudyView) -> bool:
    """Whether jobs of it wait or run, so that the page changes by itself."""
    return any(row.state in {"queued", "training", "judging"} for row in found.rows)
