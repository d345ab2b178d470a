"""The HTML pages around API keys: signing in and out with one, the admin's list of them, and the audit log."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import ValidationError

from dkl.explain import explain
from service import audit, keys, sessions
from service.access import AccessError, Admin, needs, recognise
from service.state import state_of
from service.web.templating import templates

router = APIRouter(include_in_schema=False)
_GIB = 2**30
_AUDIT_ROWS = 100
_NO_STORE = {"Cache-Control": "no-store"}


async def _form(request: Request) -> dict[str, str]:
    """The fields of a submitted form that were filled in."""
    try:
        fields = parse_qsl((await request.body()).decode(), strict_parsing=False, max_num_fields=20)
    except ValueError:
        raise HTTPException(400, "this form cannot be read; send it from its page") from None
    return dict(fields)


Form = Annotated[dict[str, str], Depends(_form)]


# --- signing in -----------------------------------------------------------------------------------------------


@router.get("/signin", dependencies=[needs("nothing")])
def signin_page(request: Request, next: str = "/") -> Response:
    return _page(request, "signin.html", {"next": _ours(next)})


@router.post("/signin", dependencies=[needs("nothing")])
def sign_in(request: Request, form: Form) -> Response:
    place = _ours(form.get("next", "/"))
    try:
        key = recognise(request, form.get("key", "").strip())
    except AccessError as error:
        page = _page(request, "signin.html", {"next": place, "refusal": str(error)}, error.status)
        page.headers.update({name: value for name, value in error.headers.items() if name != "WWW-Authenticate"})
        return page
    response = RedirectResponse(place, 303, _NO_STORE)
    sessions.begin(request, response, state_of(request).settings, key.id)
    return response


@router.post("/signout", dependencies=[needs("nothing")])
def sign_out() -> Response:
    response = RedirectResponse("/", 303)
    sessions.end(response)
    return response


def _ours(place: str) -> str:
    """Where to go after signing in: a path of this site, or its front page where it is anything else."""
    plain = place.startswith("/") and not place.startswith("//") and "\\" not in place and place.isprintable()
    return place if plain and place.isascii() else "/"


# --- keys -----------------------------------------------------------------------------------------------------


@router.get("/keys", dependencies=[needs("admin")])
def keys_page(request: Request) -> Response:
    return _keys(request)


@router.post("/keys")
def create_key(request: Request, form: Form, caller: Admin) -> Response:
    state = state_of(request)
    try:
        wanted = _wanted(form)
    except ValidationError as error:
        return _keys(request, 422, form=form, faults=explain(error.errors(), form, keys.KeyRequest))
    row, text = keys.create(state.db, state.settings, wanted, caller=caller)
    return _keys(request, made=row, text=text)


def _wanted(form: Mapping[str, str]) -> keys.KeyRequest:
    wanted: dict[str, Any] = {name: text.strip() for name, text in form.items() if text.strip()}
    with suppress(KeyError, ValueError, OverflowError):  # what is no number, the validation refuses
        wanted["max_storage"] = int(float(wanted["max_storage"]) * _GIB)
    return keys.KeyRequest.model_validate(wanted)


@router.post("/keys/{key_id}/revoke")
def revoke_key(key_id: str, request: Request, caller: Admin) -> Response:
    keys.revoke(state_of(request).db, key_id, caller=caller)
    return RedirectResponse("/keys", 303)


def _keys(request: Request, status: int = 200, **more: Any) -> Response:
    context = {"keys": keys.every(state_of(request).db), "form": {}, "gib": _GIB, **more}
    return _page(request, "keys.html", context, status)


# --- audit ----------------------------------------------------------------------------------------------------


@router.get("/audit", dependencies=[needs("admin")])
def audit_page(request: Request, before: Annotated[int | None, Query(ge=1, le=2**63 - 1)] = None) -> Response:
    found = audit.recent(state_of(request).db, before=before, limit=_AUDIT_ROWS + 1)
    context = {"events": found[:_AUDIT_ROWS], "older": len(found) > _AUDIT_ROWS, "before": before}
    return _page(request, "audit.html", context)


def _page(request: Request, name: str, context: dict[str, Any], status: int = 200) -> Response:
    return templates.TemplateResponse(request, name, context, status, _NO_STORE)
