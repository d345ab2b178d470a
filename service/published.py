"""What a paper reports beside what was measured here, for jobs that run a named recipe."""

from functools import cache
from typing import NamedTuple

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
    entry = _named(training)
    return entry if entry and isinstance(entry.published, Published) else None


def _named(job: Job) -> Named | None:
    """The catalogue's entry that the job was submitted under; None where it is about other data: whatever it comes
    to there, no number in print is to be put beside it."""
    entry = RECIPES.get(job.name or "")
    return entry if entry and entry.recipe.dataset == job.dataset else None


def changes(job: Job) -> list[str]:
    """The fields in which the job's recipe differs from the named one that it was submitted under, but for those
    that change nothing in the question and for the teacher, which the catalogue leaves open."""
    if job.name not in RECIPES:
        return []
    named = _as_named(job.name)
    run = dict(fields({name: value for name, value in job.recipe.items() if name != "teacher"}))
    return [path for path in named | run if named.get(path) != run.get(path) and path not in _NO_CHANGE]


@cache
def _as_named(name: str) -> dict[str, str]:
    """A thousand rows of a board may be of one recipe."""
    return dict(fields(RECIPES[name].recipe.model_dump(mode="json")))


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
    return Comparison(paper, entry.also, rows, changes(training))


def compare_accuracy(job: Job) -> Comparison | None:
    """A paper's accuracies beside those of this training or distillation, where nothing is attacked."""
    entry = _named(job)
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
    return Comparison(paper, entry.also, rows, changes(job))
