"""Which of two entries is better, and how sure that is: paired where both saw the same images.

With flags per image from the same images, the images on which two models agree say nothing about which is better:
McNemar's test looks at the others. Without them there is a difference of two fractions, and no test.
"""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from dkl.paired import pairs_of
from service.contenders import Contender
from service.rows import Board
from service.significance import holm

Interval = tuple[float, float]
Unpaired = Literal["published", "without verdicts", "other images"]


class Counts(BaseModel):
    """Of how many images a condition holds for the models of both entries, of one, or of neither."""

    both: int
    only_a: int
    only_b: int
    neither: int


class Difference(BaseModel):
    """An accuracy of A minus that of B, as fractions."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    difference: float
    interval: Interval | None
    """95 %, by Newcombe's score method: the paired one where `counts` are there, otherwise the one for independent
    samples, which is wider than need be for models alike; absent where a number of images is not known."""
    counts: Counts | None
    """Absent where there is no paired test."""
    p_value: float | None
    """Of McNemar's exact test, two-sided, of this pair alone."""
    corrected: float | None
    """The same after Holm's correction over all pairs of the comparison."""
    unpaired: Unpaired | None
    """Why there is no paired test; absent where there is one. published: one of them is, and which images it gets
    right is not known. without verdicts: no verdict per image is kept for one, since it is about corruptions or
    older than such verdicts. other images: they were not judged on the same ones."""


class PairTest(BaseModel):
    """Two entries of a comparison."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    a: str
    """An entry's label, like `b`."""
    b: str
    clean: Difference | None
    """Absent where the data sets differ."""
    robust: Difference | None
    """Absent where the boards differ."""


class Shared(BaseModel):
    """Entries of one board that saw the same images, and how often one of them differs from all others."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    entries: list[str]
    """Labels."""
    images: int
    stands_alone: list[int]
    """Per entry: images that it alone classifies correctly under attack."""
    falls_alone: list[int]
    """Per entry: images that it alone does not."""


def pair_tests(group: Sequence[Contender]) -> list[PairTest]:
    """Every pair, in the order of the entries."""
    tests = [_pair_test(a, b) for a, b in combinations(group, 2)]
    for of in ("clean", "robust"):
        made = [d for test in tests if (d := getattr(test, of)) and d.p_value is not None]
        corrected = holm(np.array([d.p_value for d in made])).tolist()
        for difference, p_value in zip(made, corrected, strict=True):
            difference.corrected = p_value
    return tests


def shared_images(group: Sequence[Contender]) -> list[Shared]:
    """Every set of two or more entries whose flags are about the same images under the same threat."""
    sets: dict[tuple[Board, str, int | None], list[Contender]] = {}
    for one in group:
        if one.flags:
            sets.setdefault((one.row.board, one.flags.data_sha256, one.row.images), []).append(one)
    return [_shared(some) for some in sets.values() if len(some) > 1]


def alone(flags: NDArray[np.bool_], at: int) -> NDArray[np.bool_]:
    """`flags` (M, N), one row per model: the images (N,) that are true for model `at` and for no other."""
    return np.asarray(flags[at] & (flags.sum(0) == 1))


def _shared(some: Sequence[Contender]) -> Shared:
    standing = np.stack([one.robust for one in some if one.robust is not None])
    return Shared(
        entries=[one.label for one in some],
        images=standing.shape[1],
        stands_alone=[int(alone(standing, at).sum()) for at in range(len(some))],
        falls_alone=[int(alone(~standing, at).sum()) for at in range(len(some))],
    )


# --- one pair ---------------------------------------------------------------------------------------------


def _pair_test(a: Contender, b: Contender) -> PairTest:
    board, other = a.row.board, b.row.board
    return PairTest(
        a=a.label,
        b=b.label,
        clean=_clean(a, b) if board.dataset == other.dataset else None,
        robust=_robust(a, b) if board == other else None,
    )


def _clean(a: Contender, b: Contender) -> Difference:
    reason = why_unpaired(a, b)
    if reason is None and a.clean is not None and b.clean is not None:
        return _paired(a.clean, b.clean)
    mine = _Estimate(a.row.clean_accuracy, a.row.clean_interval)
    return _independent(mine, _Estimate(b.row.clean_accuracy, b.row.clean_interval), reason)


def _robust(a: Contender, b: Contender) -> Difference:
    reason = why_unpaired(a, b)
    if reason is None and a.robust is not None and b.robust is not None:
        return _paired(a.robust, b.robust)
    mine = _Estimate(a.row.robust_accuracy, a.row.robust_interval)
    return _independent(mine, _Estimate(b.row.robust_accuracy, b.row.robust_interval), reason)


def _paired(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> Difference:
    pairs = pairs_of(a, b)
    return Difference(
        difference=pairs.difference,
        interval=pairs.interval(),
        counts=Counts(both=pairs.both, only_a=pairs.only_a, only_b=pairs.only_b, neither=pairs.neither),
        p_value=pairs.p_value(),
        corrected=None,
        unpaired=None,
    )


class _Estimate(NamedTuple):
    fraction: float
    interval: Interval | None


def _independent(a: _Estimate, b: _Estimate, reason: Unpaired | None) -> Difference:
    """Without a test. The interval is the one of two samples that have nothing to do with each other,

        D - sqrt((p_a - lower_a)^2 + (upper_b - p_b)^2),     D + sqrt((upper_a - p_a)^2 + (p_b - lower_b)^2)

    Source: R. G. Newcombe, Statistics in Medicine 17 (1998) 873, method 10.
    """
    difference, interval = a.fraction - b.fraction, None
    if a.interval and b.interval:
        below = math.hypot(a.fraction - a.interval[0], b.interval[1] - b.fraction)
        above = math.hypot(a.interval[1] - a.fraction, b.fraction - b.interval[0])
        interval = difference - below, difference + above
    return Difference(
        difference=difference, interval=interval, counts=None, p_value=None, corrected=None, unpaired=reason
    )


def why_unpaired(a: Contender, b: Contender) -> Unpaired | None:
    """Why it is not known of each image what both models made of it; None where it is."""
    if "published" in {a.row.source, b.row.source}:
        return "published"
    if a.flags is None or b.flags is None:
        return "without verdicts"
    same = (a.flags.data_sha256, a.row.images) == (b.flags.data_sha256, b.row.images)
    return None if same else "other images"
