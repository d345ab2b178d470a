"""Two evaluations compared image by image: how often each model stands where the other falls. No torch here.

Both models saw the same images, so the images on which they agree say nothing about which is better.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from dkl.evidence import Evidence, EvidenceError
from dkl.intervals import wilson_interval


@dataclass(frozen=True)
class Pairs:
    """On how many images a condition holds for the models A and B."""

    both: int
    only_a: int
    only_b: int
    neither: int

    @property
    def images(self) -> int:
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def difference(self) -> float:
        """The fraction for A minus the fraction for B."""
        return (self.only_a - self.only_b) / self.images

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """The score interval of `difference`, D = p_a - p_b, for the images as a sample of all images.

            D - sqrt(s^2 - 2 phi s t + t^2),   s = p_a - lower_a,   t = upper_b - p_b
            D + sqrt(u^2 - 2 phi u v + v^2),   u = upper_a - p_a,   v = p_b - lower_b

        lower and upper are Wilson's limits; phi is the correlation between the models,

            phi = (both * neither - only_a * only_b - correction) / sqrt(product of the four marginal sums)

        where the correction, images / 2, brings a positive numerator at most to 0; phi is 0 where a sum is 0.

        Source: R. G. Newcombe, Statistics in Medicine 17 (1998) 2635, method 10.
        """
        n, a, b = self.images, self.both + self.only_a, self.both + self.only_b
        (lower_a, upper_a), (lower_b, upper_b) = (
            wilson_interval(a, n, confidence),
            wilson_interval(b, n, confidence),
        )
        s, t = a / n - lower_a, upper_b - b / n
        u, v = upper_a - a / n, b / n - lower_b
        agreement = self.both * self.neither - self.only_a * self.only_b
        corrected = max(agreement - n / 2, 0) if agreement > 0 else agreement
        marginal = a * (n - a) * b * (n - b)
        phi = corrected / marginal**0.5 if marginal else 0.0
        below, above = (x * x - 2 * phi * x * y + y * y for x, y in ((s, t), (u, v)))
        low, high = self.difference - max(below, 0.0) ** 0.5, self.difference + max(above, 0.0) ** 0.5
        return max(low, -1.0), min(high, 1.0)  # rounding may lead a little out

    def p_value(self) -> float:
        """McNemar's exact test, two-sided: how probable so uneven a split of the disagreements is by chance.

            min(1, 2 * P(X <= min(only_a, only_b))),     X ~ Binomial(only_a + only_b, 1/2)

        Source: Q. McNemar, Psychometrika 12 (1947) 153; the conditional binomial test.
        """
        trials, fewer = self.only_a + self.only_b, min(self.only_a, self.only_b)
        tail = ways = 1
        for k in range(fewer):
            ways = ways * (trials - k) // (k + 1)
            tail += ways
        return float(min(Fraction(1), Fraction(2 * tail, 2**trials)))


@dataclass(frozen=True)
class Comparison:
    """Two models on the same images."""

    images: int
    clean: Pairs
    """Classified correctly without an attack."""
    robust: tuple[tuple[float, Pairs], ...]
    """Per radius, in pixels, ascending: not broken at it."""


def compare(a: Evidence, b: Evidence) -> Comparison:
    """The models of `a` and `b` side by side; EvidenceError unless images, norm and radii are the same."""
    _require_comparable(a, b)
    return Comparison(
        images=len(a.images),
        clean=pairs_of(a.clean_correct, b.clean_correct),
        robust=tuple((eps, pairs_of(a.standing(r), b.standing(r))) for r, eps in enumerate(a.radii.tolist())),
    )


def pairs_of(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> Pairs:
    """The counts of two arrays of flags (N,), image by image."""
    return Pairs(int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum()), int((~a & ~b).sum()))


def _require_comparable(a: Evidence, b: Evidence) -> None:
    asked_a, asked_b = a.about.question, b.about.question
    same_images = a.about.data_sha256 == b.about.data_sha256 and np.array_equal(a.images, b.images)
    if not same_images:
        raise EvidenceError(
            f"only results on the same images can be compared, found {len(a.images)} images of {asked_a.dataset} "
            f"and {len(b.images)} other ones of {asked_b.dataset}; evaluate both models alike"
        )
    if asked_a.threat.norm != asked_b.threat.norm or not np.array_equal(a.radii, b.radii):
        raise EvidenceError(
            f"only results under the same threat can be compared, found {asked_a.threat.norm} {a.radii.tolist()} "
            f"and {asked_b.threat.norm} {b.radii.tolist()}; evaluate both models alike"
        )
