"""2 to 6 entries of the leaderboards compared: every number that the page shows and the interface answers."""

from collections.abc import Callable, Sequence

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Engine

from dkl.documents import show_pixels
from service.contenders import Contender, contenders
from service.learning_curves import LearningCurve, learning_curves
from service.pair_tests import PairTest, Shared, pair_tests, shared_images
from service.rows import Board, Row
from service.side_by_side import Classes, Recipes, Stages, classes, evaluation_recipes, stages, training_recipes


class Compared(BaseModel):
    """One of the entries."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    label: str
    """Its place as a letter: "A" is the first. The rest of the comparison calls it so."""
    board: Board
    row: Row
    data_sha256: str | None
    """Of the images that it was judged on; absent where no verdict per image is known."""


class Best(BaseModel):
    """Labels of the entries with the highest accuracy among those that they can be compared with; none where there
    are no others, or all are equal."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    clean: list[str]
    """Of each data set."""
    robust: list[str]
    """Of each board, like `best_known`."""
    best_known: list[str]


class Comparison(BaseModel):
    """Entries side by side. Accuracies are fractions in [0, 1]."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    entries: list[Compared]
    best: Best
    remarks: list[str]
    """What cannot be compared, or only with care, in sentences."""
    training: Recipes
    """How the models were made, where that is known."""
    evaluation: Recipes
    """How they were judged here."""
    stages: list[Stages]
    """What each attack left, per board with two or more evaluations."""
    classes: list[Classes]
    """Robust accuracies per board, and clean ones per data set, with two or more evaluations."""
    tests: list[PairTest]
    """Every pair of entries."""
    shared: list[Shared]
    """Entries whose verdicts are about the same images under the same threat."""
    curves: list[LearningCurve]


def compare(db: Engine, names: Sequence[str]) -> Comparison:
    """The entries called `names` side by side. ComparisonError unless they are 2 to 6 different ones, and
    UnknownEntryError where a leaderboard has none of a name."""
    group = contenders(db, names)
    return comparison_of(group, learning_curves(db, group))


def comparison_of(group: Sequence[Contender], curves: list[LearningCurve]) -> Comparison:
    return Comparison(
        entries=[_compared(one) for one in group],
        best=_best(group),
        remarks=_remarks(group),
        training=training_recipes(group),
        evaluation=evaluation_recipes(group),
        stages=stages(group),
        classes=classes(group),
        tests=pair_tests(group),
        shared=shared_images(group),
        curves=curves,
    )


def _compared(one: Contender) -> Compared:
    sha256 = one.flags.data_sha256 if one.flags else None
    return Compared(label=one.label, board=one.row.board, row=one.row, data_sha256=sha256)


def _best(group: Sequence[Contender]) -> Best:
    boards = [
        [one for one in group if one.row.board == board] for board in dict.fromkeys(o.row.board for o in group)
    ]
    data_sets: dict[str, list[Contender]] = {}
    for one in group:
        data_sets.setdefault(one.row.board.dataset, []).append(one)
    return Best(
        clean=[label for some in data_sets.values() for label in _highest(some, "clean_accuracy")],
        robust=[label for some in boards for label in _highest(some, "robust_accuracy")],
        best_known=[label for some in boards for label in _highest(some, "best_known_accuracy")],
    )


def _highest(group: Sequence[Contender], accuracy: str) -> list[str]:
    accuracies = {one.label: getattr(one.row, accuracy) for one in group}
    highest = [label for label, value in accuracies.items() if value == max(accuracies.values())]
    return highest if len(highest) < len(accuracies) else []


def _remarks(group: Sequence[Contender]) -> list[str]:
    remarks = []
    if len({one.row.board.dataset for one in group}) > 1:
        remarks.append(
            f"The entries are about different data sets ({_by(group, lambda row: row.board.title)}): neither "
            "their clean nor their robust accuracies can be compared."
        )
    elif len({one.row.board for one in group}) > 1:
        remarks.append(
            f"The robust accuracies are about different threat models ({_by(group, lambda r: r.board.threat)}) "
            "and cannot be compared; the clean ones can."
        )
    elif len({one.row.eps for one in group}) > 1:
        remarks.append(
            f"They were judged at slightly different radii ({_by(group, _radius)}): the smaller one breaks fewer "
            "images."
        )
    if len({_suite(one.row) for one in group}) > 1:
        remarks.append(
            f"They were judged in different ways ({_by(group, _suite)}): the weaker judge breaks fewer images."
        )
    return remarks


def _radius(row: Row) -> str:
    return show_pixels(row.eps) if row.eps else "none"


def _suite(row: Row) -> str:
    """Who ran the same attacks makes no difference."""
    return row.suite.removesuffix(", by pyautoattack")


def _by(group: Sequence[Contender], say: Callable[[Row], str]) -> str:
    """What is said of whom: "A and C: Linf, eps 8/255; B: L2, eps 0.5"."""
    labels: dict[str, list[str]] = {}
    for one in group:
        labels.setdefault(say(one.row), []).append(one.label)
    return "; ".join(f"{listed(some)}: {said}" for said, some in labels.items())


def listed(labels: Sequence[str]) -> str:
    """ "A", "A and B", "A, B and C"."""
    return " and ".join([", ".join(labels[:-1]), labels[-1]] if len(labels) > 1 else labels)
