"""What distilling reached here: a row of every succeeded distillation.

A job that has succeeded never changes, so a process remembers the rows that it has made and reads only new ones.
"""

from collections.abc import Sequence
from threading import Lock
from weakref import WeakKeyDictionary

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session, lazyload

from dkl.architectures import Model, show_model
from service.db import reading
from service.published import compare_accuracy
from service.tables import Job

METHODS = {
    "kd": "KD",
    "at-kd": "AT",
    "ofd": "OFD",
    "crd": "CRD",
    "reviewkd": "ReviewKD",
    "dkd": "DKD",
    "ikl-kd": "IKL-KD",
    "gkl-kd": "GKL-KD",
}
"""Objectives as tables print them."""
_MODEL: TypeAdapter[Model] = TypeAdapter(Model)


class Distilled(BaseModel):
    """One student. Accuracies are fractions in [0, 1], on clean test images."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    job_id: str
    name: str | None
    """The recipe that it was submitted under."""
    dataset: str
    norm: str | None
    eps: float | None
    """What the student was made robust against, in pixels; absent where nothing was."""
    method: str
    teacher: str
    student: str
    """Architectures."""
    accuracy: float
    teacher_accuracy: float
    many: float | None
    """Accuracy on classes with more than 100 training images; of long-tailed data."""
    medium: float | None
    """On those with 20 to 100."""
    few: float | None
    """On those with fewer than 20."""
    seconds_per_iteration: float
    """On `device`."""
    extra_parameters: int
    """Learnt beside the student's own."""
    device: str
    published_accuracy: float | None
    """What is published for the same recipe, unchanged but for its teacher, seed and speed."""
    finished_at: float | None


def distilled(db: Engine) -> Sequence[Distilled]:
    """Every student that was distilled here, the oldest first."""
    with _lock:
        memory = _memories.setdefault(db, _Memory())
    return memory.look(db)


class _Memory:
    """The students of one database."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._rows: dict[str, Distilled] = {}
        """By job."""

    def look(self, db: Engine) -> Sequence[Distilled]:
        with self._lock, reading(db) as session:
            ended = (Job.kind == "distill", Job.status == "succeeded")
            if session.scalar(select(func.count()).where(*ended)) != len(self._rows):
                ids = session.scalars(select(Job.id).where(*ended).order_by(Job.finished_at, Job.id)).all()
                new = _read(session, [job_id for job_id in ids if job_id not in self._rows])
                self._rows = {job_id: self._rows.get(job_id) or new[job_id] for job_id in ids}
            return list(self._rows.values())


_lock = Lock()
_memories: WeakKeyDictionary[Engine, _Memory] = WeakKeyDictionary()


def _read(session: Session, job_ids: Sequence[str]) -> dict[str, Distilled]:
    rows: dict[str, Distilled] = {}
    for start in range(0, len(job_ids), 500):
        some = select(Job).where(Job.id.in_(job_ids[start : start + 500])).options(lazyload("*"))
        rows.update((job.id, _row(job)) for job in session.scalars(some))
        session.expunge_all()
    return rows


def _row(job: Job) -> Distilled:
    result = job.result or {}
    objective = job.recipe["objective"]["kind"]
    return Distilled(
        job_id=job.id,
        name=job.name,
        dataset=job.dataset,
        norm=job.norm,
        eps=job.eps,
        method=METHODS.get(objective, objective),
        teacher=result["teacher"],
        student=_student(job),
        accuracy=result["clean_accuracy"],
        teacher_accuracy=result["teacher_accuracy"],
        many=result["many_accuracy"],
        medium=result["medium_accuracy"],
        few=result["few_accuracy"],
        seconds_per_iteration=result["seconds_per_iteration"],
        extra_parameters=result["extra_parameters"],
        device=result["provenance"]["device"],
        published_accuracy=_published_accuracy(job),
        finished_at=job.finished_at,
    )


def _student(job: Job) -> str:
    document = job.recipe["model"]
    try:
        return show_model(_MODEL.validate_python(document))
    except ValidationError:  # of a recipe that is not known any more
        return str(document.get("kind", "a network"))


def _published_accuracy(job: Job) -> float | None:
    """What a paper reports for the recipe that the job was submitted under, if it was run as published."""
    found = compare_accuracy(job)
    return found.rows[0].published if found and not found.changed else None
