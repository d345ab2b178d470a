"""The files that a job left, as downloads: the evidence of an evaluation, and the checkpoint it is about."""

from base64 import b64encode
from pathlib import Path
from typing import Literal

from fastapi.responses import FileResponse

from service.artifacts import Artifacts
from service.db import Job
from service.jobs import TERMINAL

FileKind = Literal["evidence", "checkpoint"]


class NoFileError(LookupError):
    """The job left no such file; the message says why."""


def stored_file(artifacts: Artifacts, job: Job, kind: FileKind) -> Path | None:
    """Where the job's file lies; None where there is none."""
    sha256 = (job.result or {}).get(f"{kind}_sha256")
    return artifacts.path(sha256) if sha256 and artifacts.has(sha256) else None


def download(artifacts: Artifacts, job: Job, kind: FileKind) -> FileResponse:
    """The file as an answer that names its sha256; NoFileError where there is none. Ranges resume a download."""
    path = stored_file(artifacts, job, kind)
    if path is None:
        raise NoFileError(_why_none(job, kind))
    digest = b64encode(bytes.fromhex(path.name)).decode()
    return FileResponse(
        path,
        media_type="application/octet-stream",
        filename=f"{job.id}-{kind}.safetensors",
        headers={"ETag": f'"{path.name}"', "Repr-Digest": f"sha-256=:{digest}:"},  # RFC 9530
    )


def _why_none(job: Job, kind: FileKind) -> str:
    if kind == "evidence" and job.kind != "evaluate":
        what = "trains a model" if job.kind == "train" else "measures corruptions"
        return f"job {job.id} {what}; evidence is what evaluations under attack leave"
    if job.kind == "corruptions" and kind == "evidence":
        return f"job {job.id} is about common corruptions; evidence is what evaluations under attack leave"
    if job.status not in TERMINAL:
        return f"job {job.id} is {job.status}; its {kind} is there when it has succeeded"
    if job.result is None:
        return f"job {job.id} has {'failed' if job.status == 'failed' else 'been canceled'} and left no {kind}"
    if f"{kind}_sha256" not in job.result:
        return f"job {job.id} is older than this service's evidence; judge the model again to have it"
    sources = job.recipe.get("model", {})
    if kind == "checkpoint" and (public := sources.get("zoo") or sources.get("timm")):
        return f"job {job.id} judged {public}, whose weights are not kept here but fetched from their publisher"
    return f"the {kind} of job {job.id} is no longer stored here; its sha256 is {job.result[f'{kind}_sha256']}"
