"""A job of a service, in the hand of a client: what it is, how far it is, and what can be done with it."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import httpx2

from service.client_files import FileKind, OnProgress, download
from service.client_http import Connection, ServiceError

if TYPE_CHECKING:  # half a second that nobody waits for who only submits
    from dkl.events import CorruptionsResult, DistillResult, EvaluateResult, ImportResult, TrainResult

    Result = TrainResult | DistillResult | ImportResult | EvaluateResult | CorruptionsResult

OVER = frozenset({"succeeded", "failed", "canceled"})
"""States of a job that has ended."""
_PATIENCE_SECONDS = 30.0
"""So long a service may take to restart while its events are followed."""


class JobFailed(Exception):  # noqa: N818  (as people would look for it)
    """The job has failed, or was canceled; the message says why. `job` is its handle."""

    def __init__(self, job: "Job") -> None:
        why = f": {job.reason}" if job.reason else ""
        what = f"job {job.id} ({job.title}) {'was canceled' if job.status == 'canceled' else 'has failed'}{why}"
        super().__init__(f"{what}; see dklbench log {job.id}")
        self.job = job


@dataclass(frozen=True)
class Event:
    """One event of a job: kind is "status", "started", "joined", "left", "progress", "epoch", "adjusted", "batch",
    "corruption", "finished" or "end"."""

    kind: str
    data: dict[str, Any]
    id: int = 0
    """In the ledger; 0 for progress and end, which are of the moment."""


class Job:
    """A job of a service, as it was when last asked about: `refresh`, `watch` and `wait` bring it up to date.

    `document` is all that the service says of it: GET /api/v1/jobs/ID in the interface's description, /api/docs.
    """

    def __init__(self, connection: Connection, document: dict[str, Any]) -> None:
        self._connection = connection
        self.document = document

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.title}: {self.status}>"

    @property
    def id(self) -> str:
        return str(self.document["id"])

    @property
    def name(self) -> str | None:
        """The recipe's, in the catalogue; None where a whole recipe was submitted."""
        name: str | None = self.document["name"]
        return name

    @property
    def kind(self) -> str:
        """ "train", "distill", "import", "evaluate" or "corruptions"."""
        return str(self.document["kind"])

    @property
    def title(self) -> str:
        """Its name, or its kind where it has none."""
        return self.name or self.kind

    @property
    def status(self) -> str:
        """ "queued", "running", "cancelling", "succeeded", "failed" or "canceled"."""
        return str(self.document["status"])

    @property
    def reason(self) -> str | None:
        """Why it is in this state, where there is something to say."""
        reason: str | None = self.document["reason"]
        return reason

    @property
    def parent_id(self) -> str | None:
        """The job whose model it judges or learns from, if it waits for one."""
        parent: str | None = self.document["parent_id"]
        return parent

    @property
    def is_over(self) -> bool:
        return self.status in OVER

    @property
    def url(self) -> str:
        """Its page."""
        return f"{self._connection.url}/jobs/{self.id}"

    @property
    def then(self) -> tuple["Job", ...]:
        """What was queued together with it, where this is the answer to submitting it."""
        return tuple(Job(self._connection, child) for child in self.document["then"])

    @property
    def result(self) -> "Result | None":
        """What it has found; None before it has succeeded.

        ServiceError where the service's version is so different that the result has other fields: they are in
        `document["result"]`.
        """
        if self.document["result"] is None:
            return None
        from pydantic import ValidationError

        from dkl.events import Finished

        try:
            return Finished.model_validate({"result": self.document["result"]}, extra="ignore").result
        except ValidationError as error:
            raise ServiceError(
                f"the result of job {self.id} is of another version of dkl-bench ({error.error_count()} fields do "
                "not fit); read document['result'] of the job"
            ) from None

    # --- asking -----------------------------------------------------------------------------------------------

    def refresh(self) -> Self:
        """Ask the service how it is now."""
        self.document = self._connection.json("GET", f"/api/v1/jobs/{self.id}")
        return self

    def watch(self) -> Iterator[Event]:
        """Its events from the beginning to the end; a broken connection is taken up where it broke.

        `status` and `reason` follow them; at the end all of it is up to date. NoServiceError where nobody has
        answered for half a minute, or from the beginning.
        """
        last, heard_at = "0", float("-inf")
        while True:
            try:
                headers = {"Last-Event-ID": last}
                with self._connection.stream(f"/api/v1/jobs/{self.id}/events", headers=headers) as response:
                    for event in httpx2.EventSource(response):
                        last, heard_at = event.id or last, time.monotonic()
                        is_kept = event.event not in {"progress", "end"}
                        data = cast("dict[str, Any]", event.json())
                        said = Event(event.event, data, int(last) if is_kept else 0)
                        if said.kind == "end":
                            self.refresh()
                        elif said.kind == "status":
                            self.document |= {name: said.data[name] for name in ("status", "reason")}
                        yield said
                        if said.kind == "end":
                            return
            except httpx2.TransportError as error:  # the service restarts, or is gone
                if time.monotonic() - heard_at > _PATIENCE_SECONDS:
                    raise self._connection.no_answer(error) from error
                time.sleep(0.5)

    def wait(self) -> Self:
        """Return when it has succeeded; JobFailed with the reason where it has failed or was canceled."""
        for _ in self.watch():
            pass
        if self.status != "succeeded":
            raise JobFailed(self)
        return self

    def log(self) -> Iterator[str]:
        """What it has said so far, as text, a part at a time."""
        try:
            with self._connection.stream(f"/api/v1/jobs/{self.id}/log") as response:
                yield from response.iter_text()
        except httpx2.TransportError as error:
            raise self._connection.no_answer(error) from error

    def download(self, kind: FileKind, path: Path, on_progress: OnProgress | None = None) -> str:
        """Write its evidence or its checkpoint to `path`, complete and with the sha256 that the service names, or
        not at all; that sha256."""
        return download(self._connection, self.id, kind, path, on_progress)

    # --- changing ---------------------------------------------------------------------------------------------

    def cancel(self) -> Self:
        """End it: at once if it waits, within seconds if it runs."""
        return self._moved("cancel")

    def resume(self) -> Self:
        """Let it go on, if it has failed or was canceled."""
        return self._moved("resume")

    def rerun(self) -> "Job":
        """Queue it again, as a new job, which is returned."""
        return Job(self._connection, self._connection.json("POST", f"/api/v1/jobs/{self.id}/rerun"))

    def _moved(self, how: str) -> Self:
        self.document = self._connection.json("POST", f"/api/v1/jobs/{self.id}/{how}")
        return self
