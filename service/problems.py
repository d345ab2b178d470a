"""Errors as answers: one shape for every 4xx and 5xx, a sentence for people and the fields for programs."""

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlencode

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from pydantic import BaseModel
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from dkl.catalog import UnknownRecipeError
from dkl.catalog.studies import UnknownStudyError
from dkl.explain import Fault, InvalidRecipeError, explain
from service import jobs
from service.access import AccessError
from service.contenders import ComparisonError
from service.distillation import UnknownBoardError
from service.exports import NoFlagsError
from service.imported import UnknownReportError
from service.keys import UnknownKeyError
from service.leaderboard import NothingThereError, UnknownEntryError
from service.registry import UnknownWorkerError
from service.stored import NoFileError
from service.web.documents import UnknownDocumentError
from service.web.templating import error_page, wants_html


class FieldError(BaseModel):
    field: str
    """Path in the recipe or request: "threat.eps"."""
    message: str


class Problem(BaseModel):
    """The body of every error response."""

    detail: str
    """One sentence: what is wrong and what would do."""
    errors: list[FieldError] = []
    """The same, field by field; for invalid input."""


ANSWERS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": description}
    for status, description in {
        400: "Not what it says it is: a body that is no JSON, for example",
        401: "Needs an API key, or one that is not wrong or revoked",
        403: "The API key's scope does not suffice, or another site asks",
        413: "The body is too large",
        421: "The service does not answer to this host name",
        422: "What to change, and where",
        429: "Too many requests; the header Retry-After says when to come back",
        503: "The database does not answer; nothing was changed",
    }.items()
}
"""Of every route of the interface."""


def answer(request: Request, status: int, sentence: str, faults: list[Fault] | None = None) -> Response:
    if wants_html(request):
        return error_page(request, status, sentence, faults or ())
    errors = [FieldError(field=fault.field, message=fault.message) for fault in faults or []]
    return JSONResponse(Problem(detail=sentence, errors=errors).model_dump(), status)


async def _invalid_request(request: Request, error: RequestValidationError) -> Response:
    if any(e["loc"] == ("body",) and e["type"] == "missing" for e in error.errors()):
        return answer(request, 422, "the request has no body; send a JSON document, as /api/docs describes it")
    errors = [{**e, "loc": e["loc"][1:]} for e in error.errors()]  # without "body", "query", ...
    document: Any = error.body if error.body is not None else {e["loc"][0]: None for e in errors if e["loc"]}
    body = getattr(request.scope["route"], "body_field", None)
    faults = explain(errors, document, body.field_info.annotation if body else None)
    return answer(request, 422, "; ".join(map(str, faults)), faults)


async def _invalid_recipe(request: Request, error: InvalidRecipeError) -> Response:
    return answer(request, 422, str(error), error.faults)


async def _unknown_recipe(request: Request, error: UnknownRecipeError) -> Response:
    return answer(request, 404 if request.method == "GET" else 422, str(error))


async def _unknown_job(request: Request, error: jobs.UnknownJobError) -> Response:
    return answer(request, 404, str(error))


async def _nothing_there(request: Request, error: NothingThereError) -> Response:
    return answer(request, 404, str(error))


async def _unknown_entry(request: Request, error: UnknownEntryError) -> Response:
    return answer(request, 404, str(error))


async def _no_comparison(request: Request, error: ComparisonError) -> Response:
    return answer(request, 422, str(error))


async def _no_flags(request: Request, error: NoFlagsError) -> Response:
    return answer(request, 404, str(error))


async def _unknown_report(request: Request, error: UnknownReportError) -> Response:
    return answer(request, 404, str(error))


async def _unknown_study(request: Request, error: UnknownStudyError) -> Response:
    return answer(request, 404, str(error))


async def _unknown_board(request: Request, error: UnknownBoardError) -> Response:
    return answer(request, 404, str(error))


async def _unknown_document(request: Request, error: UnknownDocumentError) -> Response:
    return answer(request, 404, str(error))


async def _no_file(request: Request, error: NoFileError) -> Response:
    return answer(request, 404, str(error))


async def _refused(request: Request, error: jobs.RefusedError) -> Response:
    return answer(request, 422, str(error))


async def _too_late(request: Request, error: jobs.TooLateError) -> Response:
    return answer(request, 409, str(error))


async def _not_yours(request: Request, error: jobs.NotYoursError) -> Response:
    return answer(request, 403, str(error))


async def _too_many(request: Request, error: jobs.TooManyError) -> Response:
    return answer(request, 429, str(error))


async def _unknown_key(request: Request, error: UnknownKeyError) -> Response:
    return answer(request, 404, str(error))


async def _unknown_worker(request: Request, error: UnknownWorkerError) -> Response:
    return answer(request, 404, str(error))


async def _no_access(request: Request, error: AccessError) -> Response:
    browses = request.method == "GET" and wants_html(request) and "hx-request" not in request.headers
    if error.status == 401 and browses:
        place = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse(f"/signin?{urlencode({'next': place})}", 303)
    response = answer(request, error.status, str(error))
    response.headers.update(error.headers)
    return response


async def _http(request: Request, error: HTTPException) -> Response:
    sentences = {
        404: f"there is nothing at {request.url.path}; the interface is described at /api/docs",
        405: f"{request.method} is not possible at {request.url.path}; see /api/docs",
    }
    if error.detail == "There was an error parsing the body":
        sentences[400] = "the body is no JSON document in UTF-8"
    response = answer(request, error.status_code, sentences.get(error.status_code, str(error.detail)))
    response.headers.update(error.headers or {})
    return response


async def _database_gone(request: Request, error: OperationalError) -> Response:
    return answer(request, 503, "the database does not answer; nothing was changed, try again in a moment")


HANDLERS: dict[type[Exception], Callable[[Request, Any], Awaitable[Response]]] = {
    RequestValidationError: _invalid_request,
    InvalidRecipeError: _invalid_recipe,
    UnknownRecipeError: _unknown_recipe,
    jobs.UnknownJobError: _unknown_job,
    NothingThereError: _nothing_there,
    UnknownEntryError: _unknown_entry,
    ComparisonError: _no_comparison,
    NoFlagsError: _no_flags,
    UnknownReportError: _unknown_report,
    UnknownStudyError: _unknown_study,
    UnknownBoardError: _unknown_board,
    UnknownDocumentError: _unknown_document,
    NoFileError: _no_file,
    jobs.RefusedError: _refused,
    jobs.TooLateError: _too_late,
    jobs.NotYoursError: _not_yours,
    jobs.TooManyError: _too_many,
    UnknownKeyError: _unknown_key,
    UnknownWorkerError: _unknown_worker,
    AccessError: _no_access,
    HTTPException: _http,
    OperationalError: _database_gone,
}
