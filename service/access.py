"""Who asks, and what they may. Every route has exactly one of these dependencies:

    @router.post("/jobs")
    def create_job(body: JobRequest, request: Request, caller: Submitter) -> JobView: ...

    @router.get("/jobs", dependencies=[needs("read")])

The caller is whoever the API key belongs to (Authorization: Bearer KEY), or the session that a browser began with
one at /signin, or nobody: then the settings say what is allowed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, cast

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from service import audit, keys, sessions
from service.callers import Caller, Scope
from service.db import writing
from service.limits import AUDITED_REFUSALS, REFUSED_KEYS, place_of
from service.settings import Settings
from service.state import State, state_of
from service.tables import ApiKey

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_BEARER = HTTPBearer(
    scheme_name="API key",
    bearerFormat="dkl_...",
    description="An API key, made with `dklbench keys create` or on the page /keys. Its scope is read, submit "
    "(which includes read) or admin (which includes both).",
    auto_error=False,
)


class AccessError(Exception):
    """The caller may not do this, or not now; the message says what they need."""

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.headers = dict(headers or {})


def anonymous_scope(settings: Settings) -> Scope:
    """What one may do without a key."""
    return settings.anonymous or "leaderboard"


# --- who ------------------------------------------------------------------------------------------------------


def _caller(request: Request, bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]) -> Caller:
    """Whoever asks; AccessError where their key is none, they ask too often, or another site asks for them."""
    state = state_of(request)
    if bearer is None:
        _refuse_other_sites(request)
    key = recognise(request, bearer.credentials) if bearer else _signed_in(request, state)
    address, request_id = _address(request), getattr(request.state, "request_id", None)
    if key is None:
        caller = Caller("anonymous", anonymous_scope(state.settings), None, address, request_id)
    else:
        caller = Caller(f"{key.name} ({key.id})", cast(Scope, key.scope), key.id, address, request_id)
    if seconds := state.limits.wait(state.limits.requests, caller.key_id or place_of(address)):
        raise _too_often("too many requests", seconds)
    request.state.caller = caller
    return caller


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def recognise(request: Request, text: str) -> ApiKey:
    """The key with this text. A wrong one costs: after some of them its address learns nothing more for a while.

    A right one passes all the same. Otherwise a forgotten script with an old key would lock out everybody behind
    its address, and what this would protect, 256 random bits, cannot be guessed.
    """
    state = state_of(request)
    try:
        return keys.recognised(state.db, state.settings, text)
    except keys.BadKeyError as error:
        address = _address(request)
        if seconds := state.limits.wait(REFUSED_KEYS, place_of(address)):
            raise _too_often("too many wrong API keys from this address", seconds) from None
        if state.limits.wait(AUDITED_REFUSALS, "all") is None:
            with writing(state.db) as session:
                nobody = Caller("anonymous", "nothing", None, address)
                audit.record(session, nobody, "key.refuse", "key", reason=str(error))
        raise AccessError(401, str(error), {"WWW-Authenticate": 'Bearer error="invalid_token"'}) from None


def _signed_in(request: Request, state: State) -> ApiKey | None:
    key_id = sessions.key_id_of(request, state.settings)
    try:
        return keys.still_good(state.db, key_id) if key_id else None
    except keys.BadKeyError:
        return None  # revoked: signed out


def _refuse_other_sites(request: Request) -> None:
    """A browser adds its cookie, and the right to be on this machine, to whatever any site makes it send."""
    if request.method in _SAFE:
        return
    site = request.headers.get("sec-fetch-site", "none")
    origin = request.headers.get("origin")
    elsewhere = origin is not None and origin.partition("://")[2] != request.headers.get("host")
    if elsewhere or site not in {"same-origin", "none"}:
        raise AccessError(403, "another site asked for this in your name; open the page here and do it yourself")


def _too_often(what: str, seconds: float) -> AccessError:
    whole = math.ceil(seconds)
    return AccessError(429, f"{what}; try again in {whole} s", {"Retry-After": str(whole)})


# --- what -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Needs:
    """A dependency: the caller, who has this scope."""

    scope: Scope

    async def __call__(self, caller: Annotated[Caller, Depends(_caller)]) -> Caller:
        if caller.may(self.scope):
            return caller
        if caller.key_id is None:
            raise AccessError(
                401,
                f"this needs an API key with scope {self.scope}: send it as Authorization: Bearer KEY, or sign in "
                "at /signin; whoever runs the service makes one with: dklbench keys create",
                {"WWW-Authenticate": "Bearer"},
            )
        raise AccessError(
            403,
            f"this needs an API key with scope {self.scope}; {caller.name} has scope {caller.scope}",
            {"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{self.scope}"'},
        )


def needs(scope: Scope) -> Any:
    """For routes that do not look at their caller: `dependencies=[needs("read")]`."""
    return Depends(Needs(scope))


Anyone = Annotated[Caller, needs("nothing")]
Visitor = Annotated[Caller, needs("leaderboard")]
Reader = Annotated[Caller, needs("read")]
Submitter = Annotated[Caller, needs("submit")]
Admin = Annotated[Caller, needs("admin")]


def require_owner(caller: Caller, key_id: str | None, what: str) -> None:
    """AccessError where `what` ("job 0123") is somebody else's."""
    if not caller.owns(key_id):
        raise AccessError(403, f"{what} was made with another API key; only that key or an admin may change it")
