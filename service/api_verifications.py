"""The REST interface of verifications: who checked an evaluation's evidence with its model, and what came out."""

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict

from service import jobs, verifications
from service.access import Submitter, needs
from service.problems import ANSWERS, Problem
from service.state import state_of
from service.verifications import VerificationRequest

router = APIRouter(
    prefix="/api/v1", responses=ANSWERS | {404: {"model": Problem, "description": "There is no such job"}}
)


class VerificationView(BaseModel):
    """Somebody has checked the evidence of an evaluation, and says what came out."""

    model_config = ConfigDict(from_attributes=True, use_attribute_docstrings=True)

    id: int
    job_id: str
    at: float
    """Seconds since the epoch."""
    actor: str
    """Whose word it is: the key's name and id, or "anonymous"."""
    evidence_sha256: str
    images: int
    adversarial: int
    """Adversarial images that were checked."""
    faults: int
    """Claims that do not hold; 0 where all of the evidence is proved."""
    sentences: list[str]
    """The first of the faults."""
    device: str
    versions: dict[str, str]


@router.post(
    "/jobs/{job_id}/verifications",
    status_code=201,
    responses={409: {"model": Problem, "description": "The job has left no evidence"}},
)
def report_verification(
    job_id: str, body: VerificationRequest, request: Request, caller: Submitter
) -> VerificationView:
    """Say what came out when you checked the evidence of an evaluation with its model, as `dklbench verify` does
    by itself. It is kept under your name, and shown beside the result."""
    return VerificationView.model_validate(verifications.record(state_of(request).db, job_id, body, caller=caller))


@router.get("/jobs/{job_id}/verifications", dependencies=[needs("read")])
def list_verifications(job_id: str, request: Request) -> list[VerificationView]:
    """Who checked the evidence of an evaluation, and what came out; newest first."""
    db = state_of(request).db
    found = verifications.of_job(db, jobs.get(db, job_id).id)
    return [VerificationView.model_validate(row) for row in found]
