"""Files into a service's store and out of it: in parts, checked, taken up again after trouble."""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import httpx2

from dkl.files import replacing
from service.client_http import Connection, ServiceError

FileKind = Literal["evidence", "checkpoint"]
OnProgress = Callable[[int, int], None]
"""Hears how many bytes have arrived, and of how many; 0 where that is not known."""
PART_BYTES = 16 * 2**20
"""Of an upload: so much is in memory, and so much is sent again after trouble."""
_PATIENCE_SECONDS = 600.0
"""An upload that makes no progress for so long, because nobody answers, is given up."""
_PASSING = frozenset({409, 429, 502, 503, 504})
"""Answers to a part that say: not now."""


def download(
    connection: Connection, job_id: str, kind: FileKind, path: Path, on_progress: OnProgress | None = None
) -> str:
    """Write the job's file to `path`, complete and with the sha256 that the service names, or not at all; that
    sha256."""
    try:
        return _download(connection, job_id, kind, path, on_progress)
    except httpx2.TransportError as error:
        raise connection.no_answer(error) from error


def _download(
    connection: Connection, job_id: str, kind: FileKind, path: Path, on_progress: OnProgress | None
) -> str:
    digest, done = hashlib.sha256(), 0
    with connection.stream(f"/api/v1/jobs/{job_id}/{kind}") as response, replacing(path) as file:
        size = int(response.headers.get("Content-Length", 0))
        for piece in response.iter_bytes():
            file.write(piece)
            digest.update(piece)
            done += len(piece)
            if on_progress:
                on_progress(done, size)
        expected = response.headers["ETag"].strip('"')
        if digest.hexdigest() != expected:
            raise ServiceError(
                f"the {kind} of job {job_id} arrived with sha256 {digest.hexdigest()}, expected {expected}; "
                "download it again"
            )
    return expected


def upload(connection: Connection, path: Path, on_progress: OnProgress | None = None) -> dict[str, Any]:
    """Send a file into the service's store; returns the upload, whose sha256 names the file in recipes.

    It comes in parts, and survives broken connections and restarts of the service; called again after it was
    interrupted, it goes on where it was.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.seek(0, os.SEEK_END)
        about = {"name": path.name[-200:], "size": size, "sha256": digest}
        there = connection.json("POST", "/api/v1/uploads", json=about)
        progress_at, wait = time.monotonic(), 0.5
        while not there["finished"]:
            if on_progress:
                on_progress(there["received"], size)
            file.seek(there["received"])
            known, there = there, _send_part(connection, there, file.read(PART_BYTES), wait)
            if there["received"] > known["received"]:
                progress_at, wait = time.monotonic(), 0.5
            elif time.monotonic() - progress_at > _PATIENCE_SECONDS and not there["finished"]:
                raise ServiceError(f"the upload of {path} makes no progress; run it again later, it will go on")
            else:
                wait = min(wait * 2, 30)
    if on_progress:
        on_progress(size, size)
    return dict(there)


def _send_part(connection: Connection, known: dict[str, Any], part: bytes, wait: float) -> dict[str, Any]:
    """The upload after one more part; after trouble that passes, as it is `wait` seconds later."""
    path = f"/api/v1/uploads/{known['id']}"
    headers = {"Upload-Offset": str(known["received"]), "Content-Type": "application/octet-stream"}
    try:
        # The answer to the last part comes when the whole file was verified and stored.
        response = connection.http.patch(path, content=part, headers=headers, timeout=600)
        if response.status_code not in _PASSING:
            return dict(connection.answered(response))
        wait = max(wait, float(response.headers.get("Retry-After", 0)))
    except httpx2.TransportError:
        pass  # how much of it has arrived is asked below
    time.sleep(wait)
    try:
        response = connection.http.get(path)
    except httpx2.TransportError:
        return known
    return known if response.status_code in _PASSING else dict(connection.answered(response))
