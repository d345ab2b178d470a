"""The documents: a list, each of them, and searching in all."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse

from service.access import needs
from service.web.documents import document, documents, picture, search
from service.web.templating import templates

router = APIRouter(prefix="/docs", include_in_schema=False, dependencies=[needs("leaderboard")])


@router.get("")
def docs_page(
    request: Request, search_for: Annotated[str, Query(alias="search", max_length=100)] = ""
) -> Response:
    context = {"documents": documents(), "search": search_for, "hits": search(search_for)}
    return templates.TemplateResponse(request, "docs.html", context)


@router.get("/{name}.png")
def docs_picture(name: str) -> Response:
    return FileResponse(picture(name), media_type="image/png")


@router.get("/{name}")
def document_page(name: str, request: Request) -> Response:
    return templates.TemplateResponse(
        request, "document.html", {"document": document(name), "documents": documents()}
    )
