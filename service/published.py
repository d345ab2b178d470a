"""What a paper reports beside what was measured here, for jobs that run a named recipe."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from dkl.catalog import RECIPES, Named, Published, PublishedAccuracy
from service.tables import Job
from service.wording import fields

_NO_CHANGE = {"seed", "precision", "compile", "processes", "keep_teacher"}
"""Fields that make the same experiment again, or faster."""


class Compared(NamedTuple):
    """One accuracy, as a fraction."""

    name: str
    published: float
    here: float | None
    job: Job | None
    """The evaluation that measured it, where the job itself did not."""


class Comparison(NamedTuple):
    paper: Published | PublishedAccuracy
    also: tuple[Published | PublishedAccuracy, ...]
    """Other numbers in print for the same recipe."""
    rows: list[Compared]
    changed: list[str]
    """Where the recipe that was run differs from the published row's: ["epochs", "model.width"]."""


def entry_of(training: Job) -> Named | None:
    """The catalogue's entry that the training was submitted under, if a paper reports its robust accuracy."""
    entry = RECIPES.get(training.name or "")
    return entry if entry and isinstance(entry.published, Published) else None


def changes(entry: Named, recipe: Mapping[str, Any]) -> list[str]:
    """The fields in which `recipe` differs from the entry's, but for those that change nothing in the question and
    for the teacher, which entries leave open."""
    asked = {name: value for name, value in recipe.items() if name != "teacher"}
    named, run = dict(fields(entry.recipe.model_dump(mode="json"))), dict(fields(asked))
    return [path for path in named | run if named.get(path) != run.get(path) and path not in _NO_CHANGE]


def judged_as_published(training: Job, evaluation: Job) -> bool:
    """Whether the evaluation's ball is the one that the paper's robust accuracy is about."""
    entry = entry_of(training)
    paper = entry.published if entry else None
    radius = paper.eps if isinstance(paper, Published) and paper.eps is not None else training.eps
    if radius is None or evaluation.eps is None:
        return False
    return evaluation.norm == training.norm and abs(evaluation.eps - radius) < 1e-9


def compare(training: Job, evaluation: Job | None) -> Comparison | None:
    """The paper's numbers beside those of this training and of one evaluation of its model.

    Without an evaluation, or with one in another ball, the robust accuracy is missing.
    """
    entry = entry_of(training)
    paper = entry.published if entry else None
    if entry is None or not isinstance(paper, Published):
        return None
    measured = evaluation or training
    as_published = evaluation is not None and judged_as_published(training, evaluation)
    rows = [
        Compared("Clean", paper.clean_accuracy, measured.clean_accuracy, None),
        Compared(
            "AutoAttack", paper.robust_accuracy, measured.robust_accuracy if as_published else None, evaluation
        ),
    ]
    return Comparison(paper, entry.also, rows, changes(entry, training.recipe))


def compare_accuracy(job: Job) -> Comparison | None:
    """A paper's accuracies beside those of this training or distillation, where nothing is attacked."""
    entry = RECIPES.get(job.name or "")
    paper = entry.published if entry else None
    if entry is None or not isinstance(paper, PublishedAccuracy):
        return None
    result = job.result or {}
    rows = [Compared("Accuracy", paper.accuracy, job.clean_accuracy, None)]
    for name, published in {
        "many": paper.many_accuracy,
        "medium": paper.medium_accuracy,
        "few": paper.few_accuracy,
        "teacher": paper.teacher_accuracy,
    }.items():
        if published is not None:
            rows.append(Compared(name.capitalize(), published, result.get(f"{name}_accuracy"), None))
    return Comparison(paper, entry.also, rows, changes(entry, job.recipe))
