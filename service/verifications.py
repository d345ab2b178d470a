"""What came out when somebody checked an evaluation's evidence with its model, as they report it.

The service itself runs no model and believes nobody: it keeps whose word it is, and refuses what cannot be about
the evidence that the evaluation left.
"""

from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from sqlalchemy import Engine, select

from dkl.documents import Sha256
from service import audit, jobs
from service.callers import Caller
from service.db import clock, reading, writing
from service.tables import Job, Verification

SENTENCES = 10
"""Faults that a report spells out; all are counted."""
_SHOWN = 100
_MOST = 2**31 - 1

Line = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f-\x9f]*$", max_length=300)]
"""No control characters."""
Name = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f-\x9f]+$", max_length=100)]


class VerificationRequest(BaseModel):
    """What `dklbench verify` found, or another program that checks evidence."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    evidence_sha256: Sha256
    """The file that was checked."""
    images: Annotated[int, Field(ge=1, le=_MOST)]
    adversarial: Annotated[int, Field(ge=0, le=_MOST)]
    """Adversarial images that were checked."""
    faults: Annotated[int, Field(ge=0, le=_MOST)]
    """Claims that do not hold; 0 where all of the evidence is proved."""
    sentences: Annotated[list[Line], Field(max_length=SENTENCES)] = []
    """The first of the faults, a sentence each."""
    device: Name
    """What the model ran on: "NVIDIA H200", "cpu"."""
    versions: Annotated[dict[Name, Name], Field(max_length=20)]
    """Of the programs that checked: "torch", "dkl-bench", ..."""

    @model_validator(mode="after")
    def _as_many_sentences_as_faults(self) -> Self:
        told = min(self.faults, SENTENCES)
        if len(self.sentences) != told:
            raise ValueError(f"{self.faults} faults are told in {told} sentences, found {len(self.sentences)}")
        return self


def record(db: Engine, job_id: str, report: VerificationRequest, *, caller: Caller) -> Verification:
    """Keep what `caller` reports about the evidence of an evaluation.

    jobs.TooLateError where the job left no evidence, jobs.RefusedError where the report is about something else.
    """
    _require_about(jobs.get(db, job_id), report)
    with writing(db) as session:
        row = Verification(job_id=job_id, at=clock(session), actor=caller.name, **report.model_dump())
        session.add(row)
        told = {"evidence_sha256": report.evidence_sha256, "faults": report.faults, "device": report.device}
        audit.record(session, caller, "evidence.verify", job_id, **told)
    return row


def of_job(db: Engine, job_id: str) -> Sequence[Verification]:
    """What was reported about the job's evidence, newest first; no more than the newest hundred."""
    query = select(Verification).where(Verification.job_id == job_id).order_by(Verification.id.desc())
    with reading(db) as session:
        return session.scalars(query.limit(_SHOWN)).all()


def latest(db: Engine, job_id: str) -> Verification | None:
    """The newest report about the job's evidence, if there is one."""
    query = select(Verification).where(Verification.job_id == job_id).order_by(Verification.id.desc())
    with reading(db) as session:
        return session.scalars(query.limit(1)).first()


def _require_about(job: Job, report: VerificationRequest) -> None:
    result = job.result or {}
    sha256, images = result.get("evidence_sha256"), result.get("images")
    if sha256 is None:
        raise jobs.TooLateError(f"job {job.id} has left no evidence; only an evaluation that has succeeded does")
    if report.evidence_sha256 != sha256:
        raise jobs.RefusedError(
            f"evidence_sha256: the evidence of job {job.id} is {sha256}, found {report.evidence_sha256}; "
            "download it again and check that"
        )
    if report.images != images or report.adversarial > report.images:
        raise jobs.RefusedError(
            f"images: the evidence of job {job.id} is about {images} images, each with at most one adversarial "
            f"image; found {report.images} images and {report.adversarial} adversarial ones"
        )
