"""Entries of the leaderboards side by side."""

from typing import Annotated

from fastapi import APIRouter, Query, Request

from service.access import needs
from service.comparisons import Comparison, compare
from service.contenders import EntryName
from service.problems import ANSWERS, Problem
from service.state import state_of

router = APIRouter(prefix="/api/v1", responses=ANSWERS)


@router.get(
    "/compare",
    responses={404: {"model": Problem, "description": "No leaderboard has such an entry"}},
    dependencies=[needs("leaderboard")],
)
def get_comparison(
    request: Request, entry: Annotated[list[EntryName], Query(min_length=2, max_length=6)]
) -> Comparison:
    """Two to six entries of the leaderboards, measured or published ones: what their recipes have in common and
    what not, accuracies attack by attack and class by class, and a paired test of every two that were judged on
    the same images."""
    return compare(state_of(request).db, entry)
