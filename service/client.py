"""A Python client of the REST interface."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import httpx2

from dkl.files import replacing

PART_BYTES = 16 * 2**20
"""Of an upload: so much is in memory, and so much is sent again after trouble."""
_PATIENCE_SECONDS = 600.0
"""An upload that makes no progress for so long, because nobody answers, is given up."""
_PASSING = frozenset({409, 429, 502, 503, 504})
"""Answers to a part that say: not now."""


class ServiceError(Exception):
    """The service refused; the message is its sentence."""


@dataclass(frozen=True)
class Event:
    """One event of a job: kind is "status", "started", "joined", "left", "progress", "epoch", "adjusted", "batch",
    "corruption", "finished" or "end"."""

    kind: str
    data: dict[str, Any]
    id: int = 0
    """In the ledger; 0 for progress and end, which are of the moment."""


class Client:
    """Talks to one service: `with Client("http://127.0.0.1:8000") as client: ...`. Thread-safe.

    `key` is an API key, where the service needs one. It is sent to this service only: redirects are not followed.
    """

    def __init__(self, url: str, key: str = "") -> None:
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx2.Client(base_url=url, timeout=30, headers=headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def submit(
        self,
        name: str,
        overrides: Mapping[str, Any] | None = None,
        *,
        top_k: int | None = None,
        queue: str | None = None,
        priority: int = 0,
        gpus: int = 0,
        gpu_memory: float = 0.0,
        webhook: str | None = None,
        then: Sequence[tuple[str, Mapping[str, Any]]] = (),
    ) -> dict[str, Any]:
        """Queue a named recipe; returns the job. An evaluation stops where its model cannot be in the `top_k`.

        `gpus` and `gpu_memory` (GiB per GPU) are what its worker must have. `then` are evaluations of the model
        that it makes, or distillations from it, as names and overrides; they are queued with it, and returned as
        the job's `then`.
        """
        body: dict[str, Any] = {"name": name, "overrides": dict(overrides or {})}
        asked: dict[str, Any] = {
            **{"top_k": top_k, "queue": queue, "priority": priority, "gpus": gpus, "gpu_memory": gpu_memory},
            **{"webhook": webhook, "then": [{"name": name, "overrides": dict(of)} for name, of in then]},
        }
        body |= {field: value for field, value in asked.items() if value}
        return self._json("POST", "/api/v1/jobs", json=body)

    def submit_recipe(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """Queue a whole recipe; returns the job."""
        return self._json("POST", "/api/v1/jobs", json={"recipe": dict(recipe)})

    def job(self, job_id: str) -> dict[str, Any]:
        return self._json("GET", f"/api/v1/jobs/{job_id}")

    def jobs(
        self, *, status: str | None = None, kind: str | None = None, limit: int = 100, before: str | None = None
    ) -> list[dict[str, Any]]:
        """The newest jobs, newest first; of those older than job `before`, if given."""
        asked = {"status": status, "kind": kind, "limit": limit, "before": before}
        query = {name: value for name, value in asked.items() if value is not None}
        return self._json("GET", "/api/v1/jobs", params=query)

    def log(self, job_id: str) -> Iterator[str]:
        """What the job has said so far, as text, a part at a time."""
        with self._stream(f"/api/v1/jobs/{job_id}/log") as response:
            yield from response.iter_text()

    def cancel(self, job_id: str) -> dict[str, Any]:
        return self._json("POST", f"/api/v1/jobs/{job_id}/cancel")

    def resume_job(self, job_id: str) -> dict[str, Any]:
        """Let a job that failed or was canceled go on; returns it."""
        return self._json("POST", f"/api/v1/jobs/{job_id}/resume")

    def rerun(self, job_id: str) -> dict[str, Any]:
        """Queue an ended job again; returns the new job."""
        return self._json("POST", f"/api/v1/jobs/{job_id}/rerun")

    def report_verification(self, job_id: str, outcome: Mapping[str, Any]) -> dict[str, Any]:
        """Record what came out when the evidence of an evaluation was checked; returns the verification."""
        return self._json("POST", f"/api/v1/jobs/{job_id}/verifications", json=dict(outcome))

    def workers(self) -> list[dict[str, Any]]:
        return self._json("GET", "/api/v1/workers")

    def drain(self, worker: str) -> dict[str, Any]:
        """Let the worker finish what it has and take nothing more; returns the worker."""
        return self._json("POST", "/api/v1/workers/drain", json={"name": worker})

    def resume(self, worker: str) -> dict[str, Any]:
        return self._json("POST", "/api/v1/workers/resume", json={"name": worker})

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

    def upload(self, path: Path, on_progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
        """Send a file into the service's store; returns the upload, whose sha256 names the file in recipes.

        It comes in parts, and survives broken connections and restarts of the service; called again after it was
        interrupted, it goes on where it was. `on_progress` hears how many bytes have arrived, and of how many.
        """
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.seek(0, os.SEEK_END)
            about = {"name": path.name[-200:], "size": size, "sha256": digest}
            upload = self._json("POST", "/api/v1/uploads", json=about)
            progress_at, wait = time.monotonic(), 0.5
            while not upload["finished"]:
                if on_progress:
                    on_progress(upload["received"], size)
                file.seek(upload["received"])
                known, upload = upload, self._send_part(upload, file.read(PART_BYTES), wait)
                if upload["received"] > known["received"]:
                    progress_at, wait = time.monotonic(), 0.5
                elif time.monotonic() - progress_at > _PATIENCE_SECONDS and not upload["finished"]:
                    raise ServiceError(
                        f"the upload of {path} makes no progress; run it again later, it will go on"
                    )
                else:
                    wait = min(wait * 2, 30)
        if on_progress:
            on_progress(size, size)
        return upload

    def _send_part(self, upload: dict[str, Any], part: bytes, wait: float) -> dict[str, Any]:
        """The upload after one more part; after trouble that passes, as it is `wait` seconds later."""
        path = f"/api/v1/uploads/{upload['id']}"
        headers = {"Upload-Offset": str(upload["received"]), "Content-Type": "application/octet-stream"}
        try:
            # The answer to the last part comes when the whole file was verified and stored.
            response = self._http.patch(path, content=part, headers=headers, timeout=600)
            if response.status_code not in _PASSING:
                return self._answered(response)
            wait = max(wait, float(response.headers.get("Retry-After", 0)))
        except httpx2.TransportError:
            pass  # how much of it has arrived is asked below
        time.sleep(wait)
        try:
            response = self._http.get(path)
        except httpx2.TransportError:
            return upload
        return upload if response.status_code in _PASSING else self._answered(response)

    def recipes(self) -> list[dict[str, Any]]:
        return self._json("GET", "/api/v1/recipes")

    def study(self, name: str) -> dict[str, Any]:
        """TABLE-BUDGET, a table of the IKL-AT paper at one budget: published beside measured, every row's jobs."""
        return self._json("GET", f"/api/v1/studies/{name}")

    def leaderboard(self, **query: Any) -> dict[str, Any]:
        """One board with its rows; `query`: dataset, norm, eps, sort, search, page, limit."""
        return self._json("GET", "/api/v1/leaderboard", params=query)

    def import_reported(self, documents: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
        """Bring published results in, at most 1,000 documents like RobustBench's model_info, all of them or none;
        returns the entries that were added, changed and unchanged."""
        return self._json("POST", "/api/v1/reported", json=[dict(document) for document in documents])

    def model_infos(self, source: Literal["measured", "published", "all"] = "measured") -> dict[str, Any]:
        """The rows of RobustBench's boards as its files, under "entries", and those "left_out" with the reason."""
        return self._json("GET", "/api/v1/model_info", params={"source": source})

    def watch(self, job_id: str) -> Iterator[Event]:
        """The job's events from its beginning to its end; a broken connection is taken up where it broke."""
        last = "0"
        while True:
            try:
                with self._stream(f"/api/v1/jobs/{job_id}/events", headers={"Last-Event-ID": last}) as response:
                    for event in httpx2.EventSource(response):
                        last = event.id or last
                        is_kept = event.event not in {"progress", "end"}
                        yield Event(event.event, event.json(), int(last) if is_kept else 0)
                        if event.event == "end":
                            return
            except httpx2.TransportError:
                time.sleep(1)  # the service restarts, or is gone: the next attempt tells
                self._json("GET", "/livez")

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
        return self._answered(response)

    def _answered(self, response: httpx2.Response) -> Any:
        if response.is_error:
            raise ServiceError(_sentence(response))
        return response.json()

    def _no_answer(self, error: httpx2.TransportError) -> ServiceError:
        return ServiceError(f"no service answers at {self.url} ({error}); start one with: dklbench up")


def _sentence(response: httpx2.Response) -> str:
    try:
        sentence = str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"the service answered {response.status_code} to {response.request.url}"
    if "WWW-Authenticate" in response.headers:  # another key would do
        sentence += "; the command line takes its key from DKLBENCH_KEY"
    return sentence
