"""The page of the REST interface, and the OpenAPI document that it is made from."""

from typing import Any, NamedTuple

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from service.access import needs
from service.web.templating import templates

router = APIRouter(include_in_schema=False)


class Operation(NamedTuple):
    method: str
    path: str
    anchor: str


@router.get("/api/docs", dependencies=[needs("leaderboard")])
def api_page(request: Request) -> Response:
    document = request.app.openapi()
    return templates.TemplateResponse(request, "api.html", {"api": document, "subjects": _subjects(document)})


@router.get("/api/openapi.json", dependencies=[needs("leaderboard")])
def api_document(request: Request) -> JSONResponse:
    return JSONResponse(request.app.openapi())


def _subjects(document: dict[str, Any]) -> dict[str, list[Operation]]:
    """The operations by what they are about: "jobs" has those of /api/v1/jobs and below."""
    subjects: dict[str, list[Operation]] = {}
    for path, operations in document["paths"].items():
        if path.startswith("/api/v1/"):
            subject = path.split("/")[3].partition(".")[0]
            subjects.setdefault(subject, []).extend(
                Operation(method.upper(), path.removeprefix("/api/v1"), operation["operationId"])
                for method, operation in operations.items()
            )
    return subjects
