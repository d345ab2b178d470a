"""What may stand in the fields of a form, as far as the service knows and the schema does not."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Engine, select

from dkl.datasets import DATASETS, show_name
from service import uploads
from service.callers import Caller
from service.db import reading
from service.lineage import MAKERS
from service.space import show_bytes
from service.state import State
from service.tables import Job, Upload
from service.web.draft import Draft
from service.wording import ago, percent

_MOST = 200
"""Jobs whose model is offered, the newest ones."""


class Option(NamedTuple):
    value: str
    label: str


class Unfinished(NamedTuple):
    """An upload that has not arrived, sizes in words."""

    name: str
    received: str
    size: str
    created_at: float


class Choices(NamedTuple):
    """By what a field is called: "dataset"."""

    only: dict[str, list[Option]]
    """Nothing else can stand in it."""
    usual: dict[str, list[Option]]
    unfinished: list[Unfinished]
    """Of the caller's uploads, for an import."""


def choices(state: State, draft: Draft, caller: Caller) -> Choices:
    only: dict[str, list[Option]] = {}
    mine: Sequence[Upload] = ()
    if draft.kind == "import":
        mine = uploads.of_caller(state.db, caller)
        only["upload"] = [*{upload.sha256: _file(upload) for upload in mine if upload.finished_at}.values()]
    elif draft.kind != "train":
        only["job"] = _models(state.db, str(draft.base["dataset"]))
    usual = {"dataset": [Option(name, dataset.title) for name, dataset in DATASETS.items()]}
    return Choices(only, usual, [_unfinished(state, upload) for upload in mine if not upload.finished_at])


def _unfinished(state: State, upload: Upload) -> Unfinished:
    received = uploads.received(state.settings, upload)
    return Unfinished(upload.name, show_bytes(received), show_bytes(upload.size), upload.created_at)


def _file(upload: Upload) -> Option:
    return Option(upload.sha256, f"{upload.name}, {show_bytes(upload.size)}, {ago(upload.created_at)}")


def _models(db: Engine, dataset: str) -> list[Option]:
    """Jobs that leave a model, or will; those of `dataset` first, the newest first among them."""
    leaves = select(Job.id, Job.name, Job.kind, Job.dataset, Job.status, Job.clean_accuracy, Job.created_at)
    leaves = leaves.where(Job.kind.in_(MAKERS), Job.status.in_(("succeeded", "running", "queued")))
    newest = leaves.order_by(Job.dataset != dataset, Job.created_at.desc(), Job.id).limit(_MOST)
    with reading(db) as session:
        return [Option(job.id, _about(job)) for job in session.execute(newest)]


def _about(job: Any) -> str:
    """The model of the job, of which `job` has some columns, in a line."""
    how = job.status
    if job.status == "succeeded":
        how = "" if job.clean_accuracy is None else f"clean {percent(job.clean_accuracy)} %"
    parts = (job.name or job.kind, show_name(job.dataset), how, ago(job.created_at), job.id)
    return ", ".join(part for part in parts if part)
