"""A Python client of the REST interface: `Client` asks, `Job` is what it hands out. Needs no torch, no
database."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import quote

from service.client_board import Ranking, read_ranking
from service.client_files import OnProgress, upload
from service.client_http import Connection, NoServiceError, NotAllowedError, ServiceError
from service.handle import Event, Job, JobFailed

if TYPE_CHECKING:
    from dkl.recipes import Recipe

__all__ = ["Client", "Event", "Job", "JobFailed", "NoServiceError", "NotAllowedError", "Ranking", "ServiceError"]

Then = tuple[str, Mapping[str, Any]]
"""A recipe's name and changes to it."""


class Client:
    """Talks to one service: `with Client("http://127.0.0.1:8000") as client: ...`. Thread-safe.

    `key` is an API key, where the service needs one. It is sent to this service only: redirects are not followed.
    Whatever is refused raises ServiceError with the service's sentence: NoServiceError where nobody answers within
    `timeout` seconds, NotAllowedError where the key does not suffice.
    """

    def __init__(self, url: str, key: str = "", *, timeout: float = 30) -> None:
        self._connection = Connection(url, key, timeout=timeout)
        self.url = self._connection.url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.http.close()

    def answers(self) -> bool:
        """Whether there is a dkl-bench service at the address."""
        try:
            return bool(self._connection.json("GET", "/livez", timeout=5) == {"status": "ok"})
        except ServiceError:
            return False

    # --- jobs -------------------------------------------------------------------------------------------------

    def submit(
        self,
        recipe: "str | Mapping[str, Any] | Recipe",
        overrides: Mapping[str, Any] | None = None,
        *,
        top_k: int | None = None,
        queue: str | None = None,
        priority: int = 0,
        gpus: int = 0,
        gpu_memory: float = 0.0,
        webhook: str | None = None,
        then: Sequence[Then] = (),
    ) -> Job:
        """Queue a job: of a named recipe with changes to it ({"epochs": 2, "threat.eps": "4/255"}), or of a whole
        one, as a document or an object of dkl.recipes.

        An evaluation stops where its model cannot be in the `top_k`. `gpus` and `gpu_memory` (GiB per GPU) are
        what its worker must have. `then` are evaluations of the model that it makes, or distillations from it;
        they are queued with it, all or none, and are the job's `then`.
        """
        if isinstance(recipe, str):
            body: dict[str, Any] = {"name": recipe, "overrides": dict(overrides or {})}
        elif overrides:
            raise ValueError("overrides go with a recipe's name; change the recipe itself instead")
        elif isinstance(recipe, Mapping):
            body = {"recipe": dict(recipe)}
        else:
            body = {"recipe": recipe.model_dump(mode="json")}
        asked: dict[str, Any] = {
            **{"top_k": top_k, "queue": queue, "priority": priority, "gpus": gpus, "gpu_memory": gpu_memory},
            **{"webhook": webhook, "then": [{"name": name, "overrides": dict(of)} for name, of in then]},
        }
        body |= {field: value for field, value in asked.items() if value}
        return Job(self._connection, self._connection.json("POST", "/api/v1/jobs", json=body))

    def job(self, job_id: str) -> Job:
        return Job(self._connection, self._connection.json("GET", f"/api/v1/jobs/{quote(job_id, safe='')}"))

    def jobs(
        self, *, status: str | None = None, kind: str | None = None, limit: int = 100, before: str | None = None
    ) -> list[Job]:
        """The newest jobs, newest first, at most 500; of those older than job `before`, if given."""
        asked = {"status": status, "kind": kind, "limit": limit, "before": before}
        query = {name: value for name, value in asked.items() if value is not None}
        return [
            Job(self._connection, found) for found in self._connection.json("GET", "/api/v1/jobs", params=query)
        ]

    # --- models -----------------------------------------------------------------------------------------------

    def send(self, path: Path, on_progress: OnProgress | None = None) -> str:
        """Put a file into the service's store; its sha256, which names it in recipes.

        It comes in parts, and survives broken connections and restarts of the service; called again after it was
        interrupted, it goes on where it was.
        """
        return str(upload(self._connection, Path(path), on_progress)["sha256"])

    def upload(
        self,
        path: Path,
        *,
        architecture: Mapping[str, Any] | None = None,
        dataset: str | None = None,
        entry: str | None = None,
        then: Sequence[Then] = (),
        on_progress: OnProgress | None = None,
    ) -> Job:
        """Send a file of weights; the job that checks it and makes a checkpoint of it.

        A checkpoint of ours says itself what it is of. Of other weights, .safetensors or what torch.save wrote,
        say the `architecture` as recipes have it ({"kind": "wide-resnet", "depth": 28, "width": 10}) and the
        `dataset` that it was trained on; `entry` is the state dict to take, where the file holds several. Nothing
        in the file is run. `then` is queued behind it, as by `submit`. ValueError for what is wrong before
        anything is sent.
        """
        from service.client_weights import import_of

        path = Path(path)
        document = import_of(path, architecture=architecture, dataset=dataset, entry=entry)
        return self.submit({**document, "upload": self.send(path, on_progress)}, then=then)

    def evaluate(
        self,
        path: Path,
        recipe: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        *,
        architecture: Mapping[str, Any] | None = None,
        dataset: str | None = None,
        entry: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> Job:
        """Send a file of weights as `upload` does and judge it; the evaluation, whose `parent_id` is the upload's
        job.

        Without a `recipe` the data set says it: autoattack-cifar10-linf for cifar10.
        """
        from service.client_weights import import_of, judge_of, require_judge

        about = import_of(Path(path), architecture=architecture, dataset=dataset, entry=entry)
        name = recipe or judge_of(about["dataset"])
        require_judge(name)
        job = self.upload(
            path, architecture=architecture, dataset=dataset, entry=entry, then=[(name, overrides or {})],
            on_progress=on_progress,
        )  # fmt: skip
        return job.then[0]

    # --- results ----------------------------------------------------------------------------------------------

    def recipes(self) -> list[dict[str, Any]]:
        """The named recipes: what each does, what papers report, every field."""
        return list(self._connection.json("GET", "/api/v1/recipes"))

    def study(self, name: str) -> dict[str, Any]:
        """TABLE-BUDGET, a table of the IKL-AT paper at one budget: published beside measured, every row's jobs."""
        return dict(self._connection.json("GET", f"/api/v1/studies/{quote(name, safe='')}"))

    def leaderboard(self, **query: Any) -> Ranking:
        """One board with a page of its rows; `query`: dataset, threat_model, eps, sort, search, page, limit, ...
        as GET /api/v1/leaderboard takes them."""
        return read_ranking(self._connection.json("GET", "/api/v1/leaderboard", params=query))

    def entry(self, name: str) -> dict[str, Any]:
        """One row of the leaderboard with its rank and board; a measured one is named by its evaluation's id."""
        return dict(self._connection.json("GET", f"/api/v1/entries/{quote(name, safe='')}"))

    def report_verification(self, job_id: str, outcome: Mapping[str, Any]) -> dict[str, Any]:
        """Record what came out when the evidence of an evaluation was checked; returns the verification."""
        return dict(self._connection.json("POST", f"/api/v1/jobs/{job_id}/verifications", json=dict(outcome)))

    def import_reported(self, documents: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
        """Bring published results in, at most 1,000 documents like RobustBench's model_info, all of them or none;
        returns the entries that were added, changed and unchanged."""
        told = self._connection.json("POST", "/api/v1/reported", json=[dict(document) for document in documents])
        return dict(told)

    def model_infos(self, source: Literal["measured", "published", "all"] = "measured") -> dict[str, Any]:
        """The rows of RobustBench's boards as its files, under "entries", and those "left_out" with the reason."""
        return dict(self._connection.json("GET", "/api/v1/model_info", params={"source": source}))

    # --- workers ----------------------------------------------------------------------------------------------

    def workers(self) -> list[dict[str, Any]]:
        """Every worker that has been heard of, and what it is at."""
        return list(self._connection.json("GET", "/api/v1/workers"))

    def drain_worker(self, worker: str) -> dict[str, Any]:
        """Let the worker finish what it has and take nothing more; returns the worker."""
        return dict(self._connection.json("POST", "/api/v1/workers/drain", json={"name": worker}))

    def resume_worker(self, worker: str) -> dict[str, Any]:
        """Let a drained worker take jobs again; returns the worker."""
        return dict(self._connection.json("POST", "/api/v1/workers/resume", json={"name": worker}))
