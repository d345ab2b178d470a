"""Data sets with a long tail, made of balanced ones: their names, and which images they keep. Imports numpy only.

`cifar10-lt@FACTOR` and `cifar100-lt@FACTOR` are made of CIFAR-10 and CIFAR-100. FACTOR, the imbalance factor, is
how many times as many training images the first class has as the last one. The test images are all of them.
"""

import math
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LARGEST_FACTOR = 1000

_NAME = re.compile(r"(cifar10|cifar100)-lt(?:@(.*))?", re.DOTALL)
_FACTOR = re.compile(r"[0-9]{1,4}(?:\.[0-9]{1,4})?")


class LongTailed(NamedTuple):
    """What a name says."""

    base: str
    """The name of the balanced data set."""
    factor: Decimal
    """From 1, which is the balanced data set itself, to LARGEST_FACTOR; without zeros at its end."""

    @property
    def name(self) -> str:
        """The one spelling: cifar100-lt@100.0 is cifar100-lt@100."""
        return f"{self.base}-lt@{self.factor:f}"


def read_name(name: str) -> LongTailed | None:
    """None where `name` is not of this form at all; ValueError where its factor is none."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    said = match[2] or ""
    factor = Decimal(said).normalize() if _FACTOR.fullmatch(said) else Decimal(0)
    if not 1 <= factor <= LARGEST_FACTOR:
        raise ValueError(
            f"the imbalance factor must be a number from 1 to {LARGEST_FACTOR} with at most 4 decimals, found "
            f"{said or 'none'!r} in {name!r}; write it as in {match[1]}-lt@100"
        )
    return LongTailed(match[1], factor)


def class_sizes(largest: float, classes: int, factor: float) -> tuple[int, ...]:
    """Training images of each class, falling exponentially:

        n_k = max(1, floor(largest * factor ** (-k / (K - 1)))),      k = 0..K-1, K = `classes` > 1

    Source: Cao et al., arXiv:1906.07413, whose code calls 1 / factor the imbalance factor.
    """
    exact = (largest * factor ** (-k / (classes - 1)) for k in range(classes))
    return tuple(max(1, math.floor(size + 1e-9)) for size in exact)  # whole numbers may come out a hair below


def first_of_each(labels: NDArray[np.int64], sizes: Sequence[int]) -> NDArray[np.int64]:
    """Positions, ascending, of the first sizes[k] images of every class k in the order given.

    The reference draws them at random; these are the same for everybody.
    """
    return np.flatnonzero(rank_in_class(labels) < np.asarray(sizes)[labels])


def rank_in_class(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of every image, how many of its class come before it."""
    by_class = np.argsort(labels, kind="stable")
    _, first, counts = np.unique(labels[by_class], return_index=True, return_counts=True)
    ranks = np.empty_like(labels)
    ranks[by_class] = np.arange(len(labels)) - np.repeat(first, counts)
    return ranks
