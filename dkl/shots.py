"""Accuracy on classes with many, a medium number of, and few training images. No torch here."""

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

MANY, FEW = 100, 20


class Shots(NamedTuple):
    """Means of per-class accuracies, as fractions; absent for a group without classes."""

    many: float | None
    """Classes with more than 100 training images."""
    medium: float | None
    """With 20 to 100."""
    few: float | None
    """With fewer than 20."""


def shots(train_counts: Sequence[int], accuracies: Sequence[float | None]) -> Shots | None:
    """The accuracies by group, of classes that have test images; None where there is no tail, see `has_tail`.

    The reference writes 0 for an empty group.

    Source: Liu et al., Large-Scale Long-Tailed Recognition in an Open World, CVPR 2019.
    """
    if not has_tail(train_counts):
        return None
    known = [(count, a) for count, a in zip(train_counts, accuracies, strict=True) if a is not None]
    return Shots(
        many=_mean([a for count, a in known if count > MANY]),
        medium=_mean([a for count, a in known if FEW <= count <= MANY]),
        few=_mean([a for count, a in known if count < FEW]),
    )


def has_tail(train_counts: Sequence[int]) -> bool:
    """Whether the classes are of more than one group: with training images > 100, 20..100, < 20."""
    return len({(count > MANY, count < FEW) for count in train_counts}) > 1


def _mean(accuracies: Sequence[float]) -> float | None:
    return fmean(accuracies) if accuracies else None
