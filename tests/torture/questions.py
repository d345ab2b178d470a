"""The jobs: small trainings on digits, and evaluations that wait for them."""

from dataclasses import dataclass
from typing import Any

from service.client import Client

SUITE = [{"kind": "apgd-ce", "steps": 20}, {"kind": "apgd-t", "steps": 20}, {"kind": "square", "queries": 1000}]


@dataclass(frozen=True)
class Question:
    """A job before it has an id. No two ask the same, so that one is recognised however often it was sent."""

    title: str
    name: str
    overrides: dict[str, Any]
    parent: str | None = None
    """The title of the training whose model it judges."""


@dataclass(frozen=True)
class Family:
    """A training and the evaluations of its model; they are submitted together."""

    training: Question
    evaluations: tuple[Question, ...]

    @property
    def questions(self) -> tuple[Question, ...]:
        return (self.training, *self.evaluations)


def families(jobs: int) -> list[Family]:
    """So many jobs in families of three: a training and two evaluations, of four and of eight chunks."""
    return [_family(number) for number in range(jobs // 3)]


def _family(number: int) -> Family:
    name = ("ikl-at-digits", "trades-digits")[number % 2]  # models that an attack takes some time to break
    changes: dict[str, Any] = {"epochs": 50, "images": 512, "seed": number}
    if name == "ikl-at-digits":
        changes["awp.first_epoch"] = 3
    training = Question(f"training {number}", name, changes)
    evaluations = tuple(
        Question(
            f"evaluation {number}.{chunks}",
            "autoattack-digits-linf",
            {"images": 96, "chunk_size": 96 // chunks, "suite": SUITE, "seed": 100 * number + chunks},
            parent=training.title,
        )
        for chunks in (4, 8)
    )
    return Family(training, evaluations)


def submit(client: Client, question: Question, ids: dict[str, str]) -> str:
    """The id of the job; of the one that is there already, where an answer to an earlier try got lost."""
    overrides = dict(question.overrides)
    if question.parent:
        overrides["model.job"] = ids[question.parent]
    for job in client.jobs(limit=500):
        if job.name == question.name and _asks(job.document["recipe"], overrides):
            return job.id
    return client.submit(question.name, overrides).id


def _asks(recipe: dict[str, Any], overrides: dict[str, Any]) -> bool:
    job = (recipe.get("model") or {}).get("job")
    return recipe["seed"] == overrides["seed"] and job == overrides.get("model.job")
