"""The page of the REST interface, and the OpenAPI document that it is made from."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from service.access import needs
from service.web.templating import templates

router = APIRouter(include_in_schema=False)


@router.get("/api/docs", dependencies=[needs("leaderboard")])
def api_page(request: Request) -> Response:
    return templates.TemplateResponse(request, "api.html", {"api": request.app.openapi()})


@router.get("/api/openapi.json", dependencies=[needs("leaderboard")])
def api_document(request: Request) -> JSONResponse:
    return JSONResponse(request.app.openapi())
