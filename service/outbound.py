"""One POST to an address that somebody named whom we do not trust.

They would like us to knock at doors of our own network. So: only https, only addresses of the public internet,
which we resolve and check ourselves, and the connection goes to the address that was checked, whatever its name
leads to a moment later. Redirects are not followed, proxies not used, and of the answer only the status is read.
"""

import re
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlsplit

import h11

SECONDS = 10.0
"""For all of it, from the connection to the status."""
_ANSWER_BYTES = 16 * 2**10
"""Of status and headers."""
_LONGEST_URL = 2000
Address = IPv4Address | IPv6Address
Resolve = Callable[[str, int], Iterable[str]]


class PostError(Exception):
    """It did not arrive; the message says why, without the path of the address: receivers keep secrets in it."""


@dataclass(frozen=True)
class Target:
    """Where it goes."""

    host: str
    port: int
    path: str


@dataclass(frozen=True)
class Network:
    """How we reach receivers; the tests have one of their own."""

    resolve: Resolve
    allows: Callable[[Address], bool]
    context: ssl.SSLContext

    @classmethod
    def public(cls) -> "Network":
        return cls(_resolve, is_public, ssl.create_default_context())


# --- where one may send -----------------------------------------------------------------------------------

_NOT_PUBLIC_4 = [IPv4Network(text) for text in ("192.0.0.0/24", "192.88.99.0/24", "240.0.0.0/4")]
_FULL_NAME = re.compile(r"([a-z0-9_-]{1,63}\.)+[a-z][a-z0-9-]{0,62}")
_UNICAST_6 = IPv6Network("2000::/3")
# Protocol assignments (Teredo among them), documentation, 6to4: outside of them nothing embeds an IPv4 address.
_NOT_PUBLIC_6 = [IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")]


def is_public(address: Address) -> bool:
    """Whether the address belongs to somebody on the internet, and to nothing near us, whatever form it takes."""
    if isinstance(address, IPv4Address):
        return address.is_global and not address.is_multicast and not any(address in net for net in _NOT_PUBLIC_4)
    return address.is_global and address in _UNICAST_6 and not any(address in net for net in _NOT_PUBLIC_6)


def check_url(url: str) -> Target:
    """Where the URL leads, as far as one can see without asking; ValueError where we would not go there."""
    if len(url) > _LONGEST_URL or any(ord(char) < 0x21 or ord(char) > 0x7E for char in url):
        raise ValueError(
            f"a webhook's address has at most {_LONGEST_URL} characters, printable ASCII without spaces"
        )
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").removesuffix("."), parts.port or 443
    except ValueError as error:
        raise ValueError(f"a webhook's address must be a URL such as https://example.org/hook: {error}") from None
    if parts.scheme != "https" or not host:
        raise ValueError("a webhook's address must begin with https:// and a name, as in https://example.org/hook")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise ValueError("a webhook's address must have no user, password or fragment; put a token into its path")
    if (literal := _literal(host)) is not None:
        if not is_public(literal):
            raise ValueError(f"webhooks go to the public internet only, and {host} is not there")
    elif not _FULL_NAME.fullmatch(host):
        raise ValueError(f"a webhook's address needs a full name of the public internet, found {host!r}")
    return Target(host, port, (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))


def _literal(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _resolve(host: str, port: int) -> Iterable[str]:
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def _checked_addresses(target: Target, network: Network) -> list[Address]:
    """Where the name leads: every address of it must be allowed, or none is used."""
    try:
        found = list(dict.fromkeys(ip_address(text) for text in network.resolve(target.host, target.port)))
    except (OSError, ValueError) as error:
        raise PostError(f"the name {target.host} leads to no address ({error})") from None
    if not found:
        raise PostError(f"the name {target.host} leads to no address")
    if not all(map(network.allows, found)):
        raise PostError(f"the name {target.host} leads to an address outside of the public internet")
    return found


# --- one request ------------------------------------------------------------------------------------------


def post(url: str, headers: dict[str, str], body: bytes, network: Network) -> None:
    """POST the body; PostError where the answer is not 2xx within the time that one try has."""
    try:
        target = check_url(url)
    except ValueError as error:  # the rules have become stricter since it was taken in
        raise PostError(str(error)) from None
    addresses = _checked_addresses(target, network)
    end = time.monotonic() + SECONDS
    try:
        with _connected(target, addresses, network.context, end) as connection:
            status = _exchange(connection, target, headers, body, end)
    except TimeoutError:
        raise PostError(f"{target.host} did not answer within {SECONDS:g} s") from None
    except ssl.SSLCertVerificationError as error:
        raise PostError(f"the certificate of {target.host} is not valid: {error.verify_message}") from None
    except (OSError, h11.ProtocolError) as error:
        raise PostError(f"{target.host} could not be reached: {error}") from None
    if 300 <= status < 400:
        raise PostError(f"{target.host} answered {status}; redirects are not followed, name the last address")
    if not 200 <= status < 300:
        raise PostError(f"{target.host} answered {status}")


def _connected(target: Target, addresses: list[Address], context: ssl.SSLContext, end: float) -> ssl.SSLSocket:
    """A TLS connection to the first of the addresses that takes one; the certificate must be the name's."""
    for number, address in enumerate(addresses, start=1):
        try:
            plain = socket.create_connection((str(address), target.port), timeout=_left(end))
        except OSError:
            if number == len(addresses):
                raise
        else:
            break
    try:
        plain.settimeout(_left(end))
        return context.wrap_socket(plain, server_hostname=target.host)
    except BaseException:
        plain.close()
        raise


def _exchange(connection: ssl.SSLSocket, target: Target, headers: dict[str, str], body: bytes, end: float) -> int:
    """Send the request and return the status of the answer, whose body stays unread."""
    host = f"[{target.host}]" if ":" in target.host else target.host
    named = {"Host": host if target.port == 443 else f"{host}:{target.port}", "Connection": "close"}
    protocol = h11.Connection(h11.CLIENT, max_incomplete_event_size=_ANSWER_BYTES)
    fields = [*named.items(), *headers.items(), ("Content-Length", str(len(body)))]
    request = h11.Request(method="POST", target=target.path, headers=fields)
    sent = (protocol.send(request), protocol.send(h11.Data(body)), protocol.send(h11.EndOfMessage()))
    connection.settimeout(_left(end))
    connection.sendall(b"".join(part or b"" for part in sent))
    for _ in range(_ANSWER_BYTES):
        match protocol.next_event():
            case h11.Response(status_code=status):
                return int(status)
            case h11.NEED_DATA:
                connection.settimeout(_left(end))
                protocol.receive_data(connection.recv(4096))
    raise PostError(f"{target.host} answered without a status")


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
