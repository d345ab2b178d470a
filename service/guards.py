"""ASGI middleware in front of the routes: under which names the service is asked, and how much one may send."""

import socket
from collections.abc import Callable
from ipaddress import ip_address
from urllib.parse import urlsplit

from fastapi import Request, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.settings import Settings

Answer = Callable[[Request, int, str], Response]
"""An error as a response: problems.answer."""
_ANY_NAME = frozenset({"/livez", "/readyz"})
"""What orchestrators ask, under whatever name they know; it tells nothing and changes nothing."""


class HostCheck:
    """Refuses requests for names that are not this service's.

    A page of another site can have its own name point here (DNS rebinding), and its scripts may then read what we
    answer; but the browser still says that name. An address instead of a name cannot be rebound.
    """

    def __init__(self, app: ASGIApp, settings: Settings, answer: Answer) -> None:
        self._app = app
        self._answer = answer
        names = {"localhost", socket.gethostname(), settings.host, _host(urlsplit(settings.url).netloc)}
        self._names = {name.lower() for name in {*names, *settings.allowed_hosts}}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _ANY_NAME:
            return await self._app(scope, receive, send)
        request = Request(scope)
        host = _host(request.headers.get("host", ""))
        if self._ours(host):
            return await self._app(scope, receive, send)
        sentence = (
            f"this service does not answer to the name {host[:100]!r}; if it is one of its names, "
            "whoever runs it adds it to DKLBENCH_ALLOWED_HOSTS"
        )
        return await self._answer(request, 421, sentence)(scope, receive, send)

    def _ours(self, host: str) -> bool:
        wildcards = (name[1:] for name in self._names if name.startswith("*."))
        return host in self._names or _is_address(host) or any(host.endswith(domain) for domain in wildcards)


class BodyLimit:
    """Refuses bodies that are larger than any document of ours. What lies below `unlimited` limits itself."""

    def __init__(self, app: ASGIApp, limit: int, unlimited: str, answer: Answer) -> None:
        self._app = app
        self._limit = limit
        self._unlimited = unlimited
        self._answer = answer
        self._sentence = f"the body is larger than {limit} bytes; files go to POST {unlimited.rstrip('/')}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(self._unlimited):
            return await self._app(scope, receive, send)
        request = Request(scope)
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > self._limit:
            return await self._answer(request, 413, self._sentence)(scope, receive, send)
        return await self._app(scope, self._counted(receive), send)

    def _counted(self, receive: Receive) -> Receive:
        """For bodies that do not say how long they are."""
        size = 0

        async def receive_counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._limit:
                raise HTTPException(413, self._sentence)  # inside the route, which answers with it
            return message

        return receive_counted


def _host(netloc: str) -> str:
    """Without the port and the brackets of an IPv6 address."""
    name = netloc.rpartition("@")[2].lower()
    if name.startswith("["):
        address, closed, _ = name[1:].partition("]")
        return address if closed else ""
    return name.partition(":")[0]


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
