"""Studies as JSON: the paper's tables at each budget, published beside measured."""

from typing import Any

from fastapi import APIRouter, Request

from service import studies
from service.access import needs
from service.problems import ANSWERS, Problem
from service.state import state_of
from service.study_views import StudySummary, StudyView

router = APIRouter(prefix="/api/v1", responses=ANSWERS, dependencies=[needs("leaderboard")])
_UNKNOWN: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "There is no such study"}}


@router.get("/studies")
def list_studies(request: Request) -> list[StudySummary]:
    """Every study: a table of the IKL-AT paper at one budget, and how many of its rows are trained and judged."""
    return studies.every(state_of(request).db)


@router.get("/studies/{name}", responses=_UNKNOWN)
def get_study(name: str, request: Request) -> StudyView:
    """One study, TABLE-BUDGET such as 2-tiny: every row with its published and its measured accuracies, its jobs,
    and what the budget changes of its recipe."""
    return studies.find(state_of(request).db, name)
