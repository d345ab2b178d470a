"""Requests to a service: what is asked and answered, and how a refusal becomes a sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

_DIRECT = {f"all://{host}": None for host in ("localhost", "127.0.0.1", "[::1]")}
"""No proxy of the environment reaches this machine's own services."""


class ServiceError(Exception):
    """The service refused; the message is its sentence, and `status` that of HTTP, None where there was none."""

    def __init__(self, sentence: str, status: int | None = None) -> None:
        super().__init__(sentence)
        self.status = status


class NoServiceError(ServiceError):
    """Nobody answers at the address, or not in time."""


class NotAllowedError(ServiceError):
    """The service wants an API key, or one with another scope: 401 or 403."""


class Connection:
    """One service's address and what is sent with every request. Thread-safe. Redirects are not followed, so the
    key reaches nobody else."""

    def __init__(self, url: str, key: str, *, timeout: float) -> None:
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            if not url.startswith(("http://", "https://")):
                raise httpx2.InvalidURL("no protocol")
            self.http = httpx2.Client(base_url=self.url, timeout=timeout, headers=headers, mounts=_DIRECT)
        except httpx2.InvalidURL:
            raise ServiceError(f"{url!r} is no address of a service; write http://HOST:PORT") from None
        except UnicodeEncodeError:
            raise ServiceError("the API key has letters that no key has; see DKLBENCH_KEY") from None

    def json(self, method: str, path: str, **options: Any) -> Any:
        """The answer's document; ServiceError where there is none."""
        try:
            response = self.http.request(method, path, **options)
        except httpx2.TransportError as error:
            raise self.no_answer(error) from error
        return self.answered(response)

    @contextmanager
    def stream(self, path: str, **options: Any) -> Iterator[httpx2.Response]:
        """An answer that is read as it comes; the caller handles httpx2.TransportError."""
        with self.http.stream("GET", path, timeout=60, **options) as response:
            if response.is_error:
                response.read()
                raise refusal(response)
            yield response

    def answered(self, response: httpx2.Response) -> Any:
        if response.is_error:
            raise refusal(response)
        try:
            return response.json()
        except ValueError:  # a redirect, a proxy's page
            raise ServiceError(
                f"{self.url} answers {response.status_code} and no JSON to {response.request.url.path}; is it the "
                "address of a dkl-bench service?"
            ) from None

    def no_answer(self, error: httpx2.TransportError) -> NoServiceError:
        return NoServiceError(
            f"no service answers at {self.url} ({error or type(error).__name__}); start one with: dklbench up, or "
            "name another with --url or DKLBENCH_URL"
        )


def refusal(response: httpx2.Response) -> ServiceError:
    """What the service says about a request that it did not take."""
    kind = NotAllowedError if response.status_code in {401, 403} else ServiceError
    try:
        sentence = str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return kind(f"the service answered {response.status_code} to {response.request.url}", response.status_code)
    if "WWW-Authenticate" in response.headers:  # another key would do
        sentence += "; the command line takes its key from DKLBENCH_KEY"
    return kind(sentence, response.status_code)
