"""How the models of a comparison learnt, epoch by epoch, where they were trained here."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Engine, select

from service.contenders import Contender
from service.db import reading
from service.lineage import LEARNERS
from service.tables import JobEvent


class EpochPoint(BaseModel):
    """What a training said at the end of an epoch; accuracies are fractions."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    epoch: int
    loss: float | None = None
    clean_accuracy: float | None = None
    """On the training images, as they were fed."""
    adversarial_accuracy: float | None = None
    """On the training images as the training's attack left them."""
    validation_accuracy: float | None = None
    """On images held out of training."""
    validation_robust_accuracy: float | None = None
    """On those under PGD."""


class LearningCurve(BaseModel):
    """One training; several evaluations may be of its model."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    job_id: str
    entries: list[str]
    """Labels of the entries that judge its model."""
    epochs: list[EpochPoint]


def learning_curves(db: Engine, group: Sequence[Contender]) -> list[LearningCurve]:
    """Of every training behind the group, in the order of the entries."""
    users: dict[str, list[str]] = {}
    for one in group:
        if one.training and one.training.kind in LEARNERS:
            users.setdefault(one.training.id, []).append(one.label)
    said = select(JobEvent.job_id, JobEvent.payload).where(JobEvent.job_id.in_(users), JobEvent.kind == "epoch")
    epochs: dict[str, list[EpochPoint]] = {job_id: [] for job_id in users}
    with reading(db) as session:
        for job_id, payload in session.execute(said.order_by(JobEvent.id)):
            epochs[job_id].append(EpochPoint.model_validate(payload))
    return [
        LearningCurve(job_id=job_id, entries=labels, epochs=epochs[job_id])
        for job_id, labels in users.items()
        if epochs[job_id]
    ]
