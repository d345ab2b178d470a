"""Errors as answers: one shape for every 4xx and 5xx, a sentence for people and the fields for programs."""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from dkl.catalog import UnknownRecipeError
from dkl.explain import Fault, InvalidRecipeError, explain
from service import jobs, pages
from service.stored import NoFileError


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


def _answer(request: Request, status: int, sentence: str, faults: list[Fault] | None = None) -> Response:
    if pages.wants_html(request):
        return pages.error_page(request, status, sentence)
    errors = [FieldError(field=fault.field, message=fault.message) for fault in faults or []]
    return JSONResponse(Problem(detail=sentence, errors=errors).model_dump(), status)


async def _invalid_request(request: Request, error: RequestValidationError) -> Response:
    errors = [{**e, "loc": e["loc"][1:]} for e in error.errors()]  # without "body", "query", ...
    document: Any = error.body if error.body is not None else {e["loc"][0]: None for e in errors if e["loc"]}
    body = getattr(request.scope["route"], "body_field", None)
    faults = explain(errors, document, body.field_info.annotation if body else None)
    return _answer(request, 422, "; ".join(map(str, faults)), faults)


async def _invalid_recipe(request: Request, error: InvalidRecipeError) -> Response:
    return _answer(request, 422, str(error), error.faults)


async def _unknown_recipe(request: Request, error: UnknownRecipeError) -> Response:
    return _answer(request, 404 if request.method == "GET" else 422, str(error))


async def _unknown_job(request: Request, error: jobs.UnknownJobError) -> Response:
    return _answer(request, 404, str(error))


async def _no_file(request: Request, error: NoFileError) -> Response:
    return _answer(request, 404, str(error))


async def _refused(request: Request, error: jobs.RefusedError) -> Response:
    return _answer(request, 422, str(error))


async def _too_late(request: Request, error: jobs.TooLateError) -> Response:
    return _answer(request, 409, str(error))


async def _http(request: Request, error: HTTPException) -> Response:
    sentences = {
        404: f"there is nothing at {request.url.path}; the interface is described at /api/docs",
        405: f"{request.method} is not possible at {request.url.path}; see /api/docs",
    }
    return _answer(request, error.status_code, sentences.get(error.status_code, str(error.detail)))


async def _database_gone(request: Request, error: OperationalError) -> Response:
    return _answer(request, 503, "the database does not answer; nothing was changed, try again in a moment")


HANDLERS: dict[type[Exception], Callable[[Request, Any], Awaitable[Response]]] = {
    RequestValidationError: _invalid_request,
    InvalidRecipeError: _invalid_recipe,
    UnknownRecipeError: _unknown_recipe,
    jobs.UnknownJobError: _unknown_job,
    NoFileError: _no_file,
    jobs.RefusedError: _refused,
    jobs.TooLateError: _too_late,
    HTTPException: _http,
    OperationalError: _database_gone,
}
