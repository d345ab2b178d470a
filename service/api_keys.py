"""The REST interface for whoever runs the service: API keys and the audit log."""

from typing import Annotated, Literal, Self

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, JsonValue

from service import audit, keys
from service.access import Admin, needs
from service.problems import ANSWERS, Problem
from service.state import state_of
from service.tables import ApiKey

router = APIRouter(prefix="/api/v1", responses=ANSWERS)


class KeyView(BaseModel):
    """An API key without the key. Times are seconds since the epoch."""

    model_config = ConfigDict(from_attributes=True, use_attribute_docstrings=True)

    id: str
    name: str
    scope: Literal["read", "submit", "admin"]
    max_running: int | None
    max_storage: int | None
    """Bytes."""
    created_at: float
    created_by: str
    used_at: float | None
    """Exact to a minute."""
    revoked_at: float | None


class NewKeyView(KeyView):
    """A key as it is answered once, to the request that made it."""

    key: str
    """Keep it: nobody can show it again."""

    @classmethod
    def of(cls, row: ApiKey, text: str) -> Self:
        return cls(**KeyView.model_validate(row).model_dump(), key=text)


class AuditView(BaseModel):
    """Somebody did something."""

    model_config = ConfigDict(from_attributes=True, use_attribute_docstrings=True)

    id: int
    at: float
    """Seconds since the epoch."""
    actor: str
    action: str
    object: str
    detail: dict[str, JsonValue]
    address: str | None
    request_id: str | None


@router.get("/keys", dependencies=[needs("admin")])
def list_keys(request: Request) -> list[KeyView]:
    """Every API key, usable ones first."""
    return [KeyView.model_validate(row) for row in keys.every(state_of(request).db)]


@router.post("/keys", status_code=201)
def create_key(body: keys.KeyRequest, request: Request, response: Response, caller: Admin) -> NewKeyView:
    """Make an API key. This answer alone has the key itself."""
    state = state_of(request)
    response.headers["Cache-Control"] = "no-store"
    return NewKeyView.of(*keys.create(state.db, state.settings, body, caller=caller))


@router.post("/keys/{key_id}/revoke", responses={404: {"model": Problem, "description": "There is no such key"}})
def revoke_key(key_id: str, request: Request, caller: Admin) -> KeyView:
    """End a key at once, and the sessions that browsers began with it. What it submitted stays."""
    return KeyView.model_validate(keys.revoke(state_of(request).db, key_id, caller=caller))


@router.get("/audit", dependencies=[needs("admin")])
def list_audit(
    request: Request,
    before: Annotated[int | None, Query(ge=1, le=2**63 - 1)] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> list[AuditView]:
    """Who did what, newest first; `before` is the id that the page before ended with."""
    found = audit.recent(state_of(request).db, before=before, limit=limit)
    return [AuditView.model_validate(event) for event in found]
