"""The jobs: small trainings on digits, distillations that wait for them, and evaluations that wait for either."""

from dataclasses import dataclass
from typing import Any, Literal

from service.client import Client

SUITE = [{"kind": "apgd-ce", "steps": 20}, {"kind": "apgd-t", "steps": 20}, {"kind": "square", "queries": 1000}]


@dataclass(frozen=True)
class Question:
    """A job before it has an id. No two ask the same, so that one is recognised however often it was sent."""

    title: str
    kind: Literal["train", "distill", "evaluate"]
    name: str
    overrides: dict[str, Any]
    parent: str | None = None
    """The title of the job whose model it judges, or is taught by."""

    @property
    def place_of_parent(self) -> str:
        """Where its recipe names the parent."""
        return "teacher.job" if self.kind == "distill" else "model.job"


Family = tuple[Question, ...]
"""Three jobs that are submitted together: a parent comes before those that wait for it."""


def families(jobs: int) -> list[Family]:
    """So many jobs in families of three. A family is a training and two evaluations, of four and of eight chunks;
    every third one is a training, a student of its model, and an evaluation of the student."""
    return [_family(number) for number in range(jobs // 3)]


def _family(number: int) -> Family:
    name = ("ikl-at-digits", "trades-digits")[number % 2]  # models that an attack takes some time to break
    changes: dict[str, Any] = {"epochs": 50, "images": 512, "seed": number}
    if name == "ikl-at-digits":
        changes["awp.first_epoch"] = 3
    training = Question(f"training {number}", "train", name, changes)
    if number % 3 == 1:
        student = Question(
            f"student {number}",
            "distill",
            "gkl-rd-digits",
            {"epochs": 20, "images": 512, "seed": number},
            parent=training.title,
        )
        return training, student, _evaluation(number, 8, student)
    return training, _evaluation(number, 4, training), _evaluation(number, 8, training)


def _evaluation(number: int, chunks: int, of: Question) -> Question:
    return Question(
        f"evaluation {number}.{chunks}",
        "evaluate",
        "autoattack-digits-linf",
        {"images": 96, "chunk_size": 96 // chunks, "suite": SUITE, "seed": 100 * number + chunks},
        parent=of.title,
    )


def submit(client: Client, question: Question, ids: dict[str, str]) -> str:
    """The id of the job; of the one that is there already, where an answer to an earlier try got lost."""
    overrides = dict(question.overrides)
    if question.parent:
        overrides[question.place_of_parent] = ids[question.parent]
    for job in client.jobs(limit=500):
        if job.name == question.name and _asks(job.document["recipe"], overrides):
            return job.id
    return client.submit(question.name, overrides).id


def _asks(recipe: dict[str, Any], overrides: dict[str, Any]) -> bool:
    parents = {f"{place}.job": (recipe.get(place) or {}).get("job") for place in ("model", "teacher")}
    return recipe["seed"] == overrides["seed"] and all(
        job == overrides.get(place) for place, job in parents.items()
    )
