"""A Python client of the REST interface."""

import hashlib
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import httpx2

from dkl.files import replacing


class ServiceError(Exception):
    """The service refused; the message is its sentence."""


@dataclass(frozen=True)
class Event:
    """One event of a job: kind is "status", "started", "progress", "epoch", "batch", "finished" or "end"."""

    kind: str
    data: dict[str, Any]


class Client:
    """Talks to one service: `with Client("http://127.0.0.1:8000") as client: ...`. Thread-safe."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._http = httpx2.Client(base_url=url, timeout=30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def submit(
        self, name: str, overrides: Mapping[str, Any] | None = None, *, top_k: int | None = None
    ) -> dict[str, Any]:
        """Queue a named recipe; returns the job. An evaluation stops where its model cannot be in the `top_k`."""
        body: dict[str, Any] = {"name": name, "overrides": dict(overrides or {})}
        return self._json("POST", "/api/v1/jobs", json=body | ({"top_k": top_k} if top_k is not None else {}))

    def submit_recipe(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """Queue a whole recipe; returns the job."""
        return self._json("POST", "/api/v1/jobs", json={"recipe": dict(recipe)})

    def job(self, job_id: str) -> dict[str, Any]:
        return self._json("GET", f"/api/v1/jobs/{job_id}")

    def jobs(self, *, status: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
        query = {"limit": limit} | ({"status": status} if status else {})
        return self._json("GET", "/api/v1/jobs", params=query)

    def cancel(self, job_id: str) -> dict[str, Any]:
        return self._json("POST", f"/api/v1/jobs/{job_id}/cancel")

    def download(self, job_id: str, kind: Literal["evidence", "checkpoint"], path: Path) -> None:
        """Write the job's file to `path`, complete and with the sha256 that the service names, or not at all."""
        try:
            self._download(job_id, kind, path)
        except httpx2.TransportError as error:
            raise self._no_answer(error) from error

    def _download(self, job_id: str, kind: str, path: Path) -> None:
        digest = hashlib.sha256()
        with self._stream(f"/api/v1/jobs/{job_id}/{kind}") as response, replacing(path) as file:
            for piece in response.iter_bytes():
                file.write(piece)
                digest.update(piece)
            expected = response.headers["ETag"].strip('"')
            if digest.hexdigest() != expected:
                raise ServiceError(
                    f"the {kind} of job {job_id} arrived with sha256 {digest.hexdigest()}, expected {expected}; "
                    "download it again"
                )

    def recipes(self) -> list[dict[str, Any]]:
        return self._json("GET", "/api/v1/recipes")

    def leaderboard(self, **query: Any) -> dict[str, Any]:
        """One board with its rows; `query`: dataset, norm, eps, sort, search."""
        return self._json("GET", "/api/v1/leaderboard", params=query)

    def watch(self, job_id: str) -> Iterator[Event]:
        """The job's events from its beginning to its end; a broken connection is taken up where it broke."""
        last = "0"
        while True:
            try:
                with self._stream(f"/api/v1/jobs/{job_id}/events", headers={"Last-Event-ID": last}) as response:
                    for event in httpx2.EventSource(response):
                        last = event.id or last
                        yield Event(event.event, event.json())
                        if event.event == "end":
                            return
            except httpx2.TransportError:
                time.sleep(1)  # the service restarts, or is gone: the next attempt tells
                self._json("GET", "/healthz")

    @contextmanager
    def _stream(self, path: str, **options: Any) -> Iterator[httpx2.Response]:
        """An answer that is read as it comes."""
        with self._http.stream("GET", path, timeout=60, **options) as response:
            if response.is_error:
                response.read()
                raise ServiceError(_sentence(response))
            yield response

    def _json(self, method: str, path: str, **options: Any) -> Any:
        try:
            response = self._http.request(method, path, **options)
        except httpx2.TransportError as error:
            raise self._no_answer(error) from error
        if response.is_error:
            raise ServiceError(_sentence(response))
        return response.json()

    def _no_answer(self, error: httpx2.TransportError) -> ServiceError:
        return ServiceError(f"no service answers at {self.url} ({error}); start one with: dklbench up")


def _sentence(response: httpx2.Response) -> str:
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError):
        return f"the service answered {response.status_code} to {response.request.url}"
