"""Which rows of a board cannot be told from its leader. numpy only.

Two models that were judged on the same images are compared image by image; others by their intervals.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dkl.intervals import wilson_interval
from service.rows import Row

LEVEL = 0.05
"""Of a whole family of tests: the chance that any of them tells two models apart without reason."""
Tie = Literal["paired", "intervals"]
Interval = tuple[float, float]
_AT_ONCE = 1024
"""Rows whose flags are compared together: 10,000 images of each are 1.2 MiB."""


class Verdicts(NamedTuple):
    """Which images a measured row's model stands on, at the board's radius."""

    data_sha256: str
    """Of the images: equal for two rows exactly when they were judged on the same ones."""
    images: int
    robust: bytes
    """One bit per image, filled with 0 up to the last byte."""


def ties(leader: int, rows: Sequence[Row], verdicts: Mapping[str, Verdicts]) -> list[Tie | None]:
    """For each row how it is tied with the row at `leader`; None for those told apart, and for the leader.

    paired: an exact McNemar test on the shared flags, Holm-corrected over all rows that have such flags, does not
    tell them apart at LEVEL. intervals: there is no pair of flags, and the 95 % intervals overlap. `verdicts` is
    by entry.
    """
    ahead = _interval(rows[leader])
    found: list[Tie | None] = ["intervals" if _overlap(ahead, _interval(row)) else None for row in rows]
    found[leader] = None
    best = verdicts.get(rows[leader].entry)
    if best is None:
        return found
    flags = {
        place: other.robust
        for place, row in enumerate(rows)
        if place != leader and (other := verdicts.get(row.entry)) is not None and other[:2] == best[:2]
    }
    told_apart = holm(mcnemar(*disagreements(best.robust, list(flags.values())))) <= LEVEL
    for place, apart in zip(flags, told_apart.tolist(), strict=True):
        found[place] = None if apart else "paired"
    return found


def disagreements(one: bytes, others: Sequence[bytes]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """On how many images only `one` stands, and on how many only the other, for each of `others`; two (N,)."""
    mine = np.frombuffer(one, np.uint8)
    only_one, only_other = np.empty(len(others), np.int64), np.empty(len(others), np.int64)
    for start in range(0, len(others), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        theirs = np.frombuffer(b"".join(others[some]), np.uint8).reshape(-1, len(mine))
        only_one[some] = np.bitwise_count(mine & ~theirs).sum(axis=1, dtype=np.int64)
        only_other[some] = np.bitwise_count(~mine & theirs).sum(axis=1, dtype=np.int64)
    return only_one, only_other


def mcnemar(only_a: NDArray[np.int64], only_b: NDArray[np.int64]) -> NDArray[np.float64]:
    """p-values of McNemar's exact test, two-sided, for many pairs at once; (N,), as dkl.paired has them for one.

        min(1, 2 * P(X <= k)),     X ~ Binomial(n, 1/2),     n = only_a + only_b,     k = min(only_a, only_b)

    The tail is summed from its largest term down, each a ratio of the one before:
    C(n, i - 1) / C(n, i) = i / (n - i + 1).
    """
    trials, fewer = only_a + only_b, np.minimum(only_a, only_b)
    term, total = np.ones(len(trials)), np.ones(len(trials))
    for step in range(int(fewer.max(initial=0))):
        left = np.maximum(fewer - step, 0)
        term *= left / (trials - left + 1)
        total += term
        if (term <= total * 1e-17).all():
            break
    log_largest = _log_factorial(trials) - _log_factorial(fewer) - _log_factorial(trials - fewer)
    return np.minimum(1.0, np.exp(math.log(2) * (1 - trials) + log_largest + np.log(total)))


def holm(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The p values, each corrected for their number, in the same order; (N,).

        p'_(i) = max over j <= i of min(1, (N - j + 1) * p_(j)),     p_(1) <= ... <= p_(N)

    To call those at or below LEVEL different is wrong for any of them with at most that probability.
    Source: S. Holm, Scandinavian Journal of Statistics 6 (1979) 65.
    """
    order = np.argsort(p_values, kind="stable")
    corrected = np.empty(len(order))
    steps = np.minimum(p_values[order] * np.arange(len(order), 0, -1), 1.0)
    corrected[order] = np.maximum.accumulate(steps)
    return corrected


def _log_factorial(numbers: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.array([math.lgamma(number + 1) for number in numbers.tolist()])


def _overlap(one: Interval | None, other: Interval | None) -> bool:
    return one is not None and other is not None and one[0] <= other[1] and other[0] <= one[1]


def _interval(row: Row) -> Interval | None:
    """Of the accuracy that the rank follows, which may be lower than what the suite has shown."""
    if row.robust_interval is None or row.images is None or row.best_known_accuracy == row.robust_accuracy:
        return row.robust_interval
    return wilson_interval(row.best_known_accuracy * row.images, row.images)
