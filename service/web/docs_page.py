"""The documents: a list, each of them, and searching in all."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse

from service.access import needs
from service.web.document_sources import pictures
from service.web.documents import Library, UnknownDocumentError
from service.web.templating import templates

router = APIRouter(prefix="/docs", include_in_schema=False, dependencies=[needs("leaderboard")])


def library(request: Request) -> Library:
    """The application's documents; its interface is described in one of them."""
    state = request.app.state
    if not hasattr(state, "library"):
        state.library = Library(request.app.openapi)
    known: Library = state.library
    return known


@router.get("")
def docs_page(
    request: Request, search_for: Annotated[str, Query(alias="search", max_length=100)] = ""
) -> Response:
    all_of_them = library(request)
    context = {"groups": all_of_them.groups, "search": search_for, "hits": all_of_them.search(search_for)}
    return templates.TemplateResponse(request, "docs.html", context)


@router.get("/{name:path}")
def document_page(name: str, request: Request) -> Response:
    all_of_them = library(request)
    if name.endswith((".png", ".svg")):
        return _picture(name)
    context = {"document": all_of_them.document(name), "groups": all_of_them.groups}
    return templates.TemplateResponse(request, "document.html", context)


def _picture(name: str) -> Response:
    known = pictures()
    if name not in known:
        raise UnknownDocumentError(f"the documents have no picture {name!r}")
    return FileResponse(known[name])
