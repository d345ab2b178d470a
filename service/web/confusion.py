"""What a model takes images for, without an attack and under the whole suite."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.exhibits import Exhibits

_MATRIX = 12
"""Classes that fit into a matrix."""
_PAIRS, _ATTRACTORS = 20, 10
_SHADES = 6


class Cell(NamedTuple):
    images: int
    shade: int
    """0 for none, up to 6 for all images of the class."""
    right: bool


class MatrixRow(NamedTuple):
    name: str
    images: int
    cells: list[Cell]


class Pair(NamedTuple):
    """Images of one class that are taken for another."""

    true: str
    taken_for: str
    images: int
    part: float
    """Of the class's images."""


class Attractor(NamedTuple):
    name: str
    images: int
    """Of other classes that are taken for it."""
    part: float
    """Of all images that are taken for a wrong class."""


@dataclass(frozen=True)
class Confusion:
    attacked: bool
    """Under the whole suite; else the clean images."""
    images: int
    wrong: int
    matrix: Sequence[MatrixRow]
    """One row per true class, one column per class that it is taken for; empty where there are more than 12."""
    pairs: Sequence[Pair]
    """The most frequent mistakes, the first the most frequent."""
    attractors: Sequence[Attractor]
    unclassified: int
    """Images without a prediction, because the logits were not finite."""


def confusion_of(exhibits: Exhibits, names: Sequence[str], *, attacked: bool) -> Confusion | None:
    """None where the evidence keeps no predictions. `names`: of the classes, as the data set numbers them."""
    if exhibits.predicted is None or exhibits.predicted_adv is None:
        return None
    taken = under_attack(exhibits) if attacked else exhibits.predicted
    assert taken is not None
    known = taken >= 0
    labels, counts = _counted(exhibits.labels[known], taken[known])
    wrong = {pair: count for pair, count in counts.items() if pair[0] != pair[1]}
    classes = max([len(names), *(1 + max(pair) for pair in counts)])
    return Confusion(
        attacked=attacked,
        images=len(taken),
        wrong=sum(wrong.values()) + int((~known).sum()),
        matrix=_matrix(counts, labels, names) if classes == len(names) <= _MATRIX else [],
        pairs=_pairs(wrong, labels, names),
        attractors=_attractors(wrong, names),
        unclassified=int((~known).sum()),
    )


def under_attack(exhibits: Exhibits) -> NDArray[np.int32] | None:
    """(N,): the class predicted at threat.eps: of the adversarial image where the image fell; None in format 1."""
    if exhibits.predicted is None or exhibits.predicted_adv is None:
        return None
    radius = int(np.searchsorted(exhibits.radii, exhibits.about.question.threat.eps))
    fell = exhibits.clean_correct & ~exhibits.standing(radius)
    return np.where(fell, exhibits.predicted_adv, exhibits.predicted)


def class_name(names: Sequence[str], number: int) -> str:
    """The name, or the number where the data set's names are not known."""
    return names[number] if 0 <= number < len(names) else str(number)


_Pairs = Mapping[tuple[int, int], int]
"""(true class, class it is taken for): images."""


def _counted(
    labels: NDArray[np.int64], taken: NDArray[np.int32]
) -> tuple[dict[int, int], dict[tuple[int, int], int]]:
    """Images per class, and per pair."""
    pairs, counts = np.unique(np.stack([labels, taken], axis=1), axis=0, return_counts=True)
    of_class, sizes = np.unique(labels, return_counts=True)
    found = {(int(true), int(other)): int(n) for (true, other), n in zip(pairs, counts, strict=True)}
    return {int(k): int(n) for k, n in zip(of_class, sizes, strict=True)}, found


def _matrix(counts: _Pairs, labels: Mapping[int, int], names: Sequence[str]) -> list[MatrixRow]:
    rows = []
    for true, name in enumerate(names):
        images = labels.get(true, 0)
        cells = [counts.get((true, other), 0) for other in range(len(names))]
        rows.append(
            MatrixRow(
                name,
                images,
                [Cell(n, -(-_SHADES * n // images) if images else 0, true == k) for k, n in enumerate(cells)],
            )
        )
    return rows


def _pairs(wrong: _Pairs, labels: Mapping[int, int], names: Sequence[str]) -> list[Pair]:
    most = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))[:_PAIRS]
    return [
        Pair(class_name(names, true), class_name(names, other), count, count / labels[true])
        for (true, other), count in most
    ]


def _attractors(wrong: _Pairs, names: Sequence[str]) -> list[Attractor]:
    total, drawn = sum(wrong.values()), dict[int, int]()
    for (_, other), count in wrong.items():
        drawn[other] = drawn.get(other, 0) + count
    most = sorted(drawn.items(), key=lambda item: (-item[1], item[0]))[:_ATTRACTORS]
    return [Attractor(class_name(names, k), count, count / total) for k, count in most]
