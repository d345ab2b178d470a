"""The leaderboard."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from service import leaderboard
from service.access import needs
from service.state import state_of
from service.web.scatter import scatter
from service.web.templating import templates

router = APIRouter(include_in_schema=False)


@router.get("/", dependencies=[needs("leaderboard")])
def leaderboard_page(request: Request, question: Annotated[leaderboard.Question, Query()]) -> Response:
    found = leaderboard.find(state_of(request).db, question)
    context = {
        "found": found,
        "sort": question.sort,
        "search": question.search,
        "page": question.page,
        "limit": question.limit,
        "scatter": scatter(found.rows),
    }
    return templates.TemplateResponse(request, "leaderboard.html", context)
