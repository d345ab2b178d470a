"""ASGI middleware around everything else: every request gets an id, a line in the log, a place in the metrics."""

import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, clear_contextvars

from service.callers import Caller
from service.metrics import Requests

_ID = re.compile(r"[A-Za-z0-9._-]{8,64}", re.ASCII)
_ROUTINE = frozenset({"/livez", "/readyz", "/metrics", "/static"})
"""Asked all the time: their lines are for debugging only."""
_log = logging.getLogger(__name__)


class Observed:
    """Takes the id of a request from its header X-Request-ID where a proxy has given it a decent one, and answers
    with it. `request.state.request_id` has it for the audit log, and every line of the log that belongs to it."""

    def __init__(self, app: ASGIApp, requests: Requests) -> None:
        self._app = app
        self._requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        clear_contextvars()  # not at the end: what the server itself says of a failed request has the id, too
        bind_contextvars(request_id=request_id)
        began = time.monotonic()
        status, answered = 500, 0.0

        async def send_with_id(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status, answered = message["status"], time.monotonic()
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        try:
            return await self._app(scope, receive, send_with_id)
        finally:
            over = time.monotonic()
            route = _route(scope)
            self._requests.observe(scope["method"], route, status, (answered or over) - began)
            _say(scope, route, status, over - began)


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _ID.fullmatch(given) else secrets.token_hex(8)


def _route(scope: Scope) -> str:
    """The route's template: /api/v1/jobs/{job_id}. What was really asked may hold anything, secrets too."""
    route = scope.get("route")
    if route is not None:
        return str(route.path)
    return "/static" if scope["path"].startswith("/static/") else "none"


def _say(scope: Scope, route: str, status: int, seconds: float) -> None:
    caller: Caller | None = scope["state"].get("caller")
    fields = {"method": scope["method"], "route": route, "status": status, "ms": round(seconds * 1000, 1)}
    if caller is not None and caller.key_id is not None:
        fields["key"] = caller.key_id
    if scope.get("client"):
        fields["address"] = scope["client"][0]
    level = logging.DEBUG if route in _ROUTINE and status < 400 else logging.INFO
    _log.log(level, "answered", extra=fields)
