"""Models that pass from job to job: which jobs make one, and which need one before they can run."""

from typing import Literal, NamedTuple

from dkl.datasets import known_dataset
from dkl.imports import Import
from dkl.lessons import FeatureLesson
from dkl.protocols import Evaluate, EvaluateCorruptions, JobResult, ModelSource, Zoo
from dkl.recipes import Distill, Recipe, Train
from dkl.zoo_names import CLASSES, find

Maker = Train | Distill | Import
"""A recipe whose job leaves a model."""
LEARNERS = frozenset({"train", "distill"})
"""Kinds of jobs that fit a model, epoch by epoch."""
MAKERS = LEARNERS | {"import"}
"""Kinds of jobs that leave a model."""


class Needed(NamedTuple):
    """A model that a recipe names."""

    field: Literal["model", "teacher"]
    """Of the recipe."""
    source: ModelSource


def needed(recipe: Recipe) -> Needed | None:
    """The model that the recipe judges or learns from; None where it does neither."""
    match recipe:
        case Evaluate() | EvaluateCorruptions():
            return Needed("model", recipe.model)
        case Distill():
            return Needed("teacher", recipe.teacher)
        case _:
            return None


def awaited(recipe: Recipe) -> str | None:
    """The id of the job whose model the recipe waits for; None where it waits for none."""
    need = needed(recipe)
    return need.source.job if need and isinstance(need.source, JobResult) else None


# --- whether a teacher fits -------------------------------------------------------------------------------


def why_unfit(recipe: Recipe, taught: str) -> str | None:
    """Why a model that was trained on the data set `taught` cannot teach what `recipe` asks, to follow its name.

    None where it can, where nothing is to be taught, and where only the files of the data sets would tell.
    """
    known, asked = known_dataset(taught), known_dataset(recipe.dataset)
    if not isinstance(recipe, Distill) or known is None or asked is None:
        return None
    found, expected = len(known.class_names), len(asked.class_names)
    if found == expected:
        return None
    return f"was trained on {known.title}, which has {found} classes; {_expected(asked.title, expected)}"


def why_unfit_of_the_zoo(recipe: Recipe) -> str | None:
    """Why the zoo's model that `recipe` names as its teacher cannot teach what it asks, as a sentence."""
    if not isinstance(recipe, Distill) or not isinstance(recipe.teacher, Zoo):
        return None
    if isinstance(recipe.objective, FeatureLesson):
        return (
            f"models of RobustBench's zoo offer no features to compare, which the objective "
            f"'{recipe.objective.kind}' needs; take 'kd', 'dkd', 'ikl-kd' or 'gkl-kd', or another teacher"
        )
    found, asked = CLASSES[find(recipe.teacher.zoo).dataset], known_dataset(recipe.dataset)
    if asked is None or len(asked.class_names) == found:
        return None
    return f"{recipe.teacher.zoo} tells {found} classes apart; {_expected(asked.title, len(asked.class_names))}"


def _expected(title: str, classes: int) -> str:
    return f"{title} has {classes} classes; name a teacher of the same ones"
