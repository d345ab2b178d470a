"""What a count among trials says about the fraction behind it. Plain Python: no torch, no scipy."""

from fractions import Fraction
from math import comb, exp, lgamma, log, log1p
from statistics import NormalDist


def wilson_interval(successes: float, trials: float, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a fraction; two fractions.

        (p + z^2/2n  +-  z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2/n),     p = successes / n, n = trials

    Unlike p +- z sqrt(p (1 - p) / n) it is right at p = 0 and p = 1, where undefended models are.
    Source: E. B. Wilson, JASA 22 (1927) 209.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = successes / trials
    centre = p + z**2 / (2 * trials)
    spread = z * (p * (1 - p) / trials + z**2 / (4 * trials**2)) ** 0.5
    scale = 1 + z**2 / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def clopper_pearson_upper(broken: int, trials: int, confidence: float = 0.95) -> float:
    """The one-sided upper bound on a probability of which `broken` of `trials` independent tries came true.

        the p with P(X <= broken) = 1 - confidence,     X ~ Binomial(trials, p)

    1 where nothing was tried or all came true; "the rule of three", 3 / trials, where none did.
    Source: C. J. Clopper and E. S. Pearson, Biometrika 26 (1934) 404.
    """
    _require_counts(broken, trials)
    if broken == trials:
        return 1.0
    low, high = broken / trials, 1.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if _binomial_tail(broken, trials, middle) > 1 - confidence else (low, middle)
    return high


def hypergeometric_upper(broken: int, sample: int, population: int, confidence: float = 0.95) -> int:
    """How many of `population` images are breakable at most, one-sided, after a look at some of them.

    `sample` images, drawn uniformly without replacement, were attacked and `broken` of them fell. Returns the
    largest K, the ones that fell included, with

        P(X <= broken) > 1 - confidence,     X ~ Hypergeometric(population, K breakable, sample drawn)

    in whole numbers, without rounding. Whatever K really is, the bound lies below it in at most 1 - confidence of
    all samples.

    Source: J. P. Buonaccorsi, The American Statistician 41 (1987) 215, the one-sided case.
    """
    _require_counts(broken, sample)
    _require_counts(sample, population)
    doubt = 1 - Fraction(str(confidence))
    low, high = broken, population - (sample - broken)  # those seen to stand are not breakable
    while low < high:
        middle = (low + high + 1) // 2
        likely = _hypergeometric_tail(broken, sample, population, middle) > doubt
        low, high = (middle, high) if likely else (low, middle - 1)
    return low


def _binomial_tail(most: int, trials: int, p: float) -> float:
    """P(X <= most), X ~ Binomial(trials, p), for 0 < p < 1 and most <= trials * p, from the largest term down."""
    log_term = (
        lgamma(trials + 1)
        - lgamma(most + 1)
        - lgamma(trials - most + 1)
        + most * log(p)
        + (trials - most) * log1p(-p)
    )
    total, share = 0.0, 1.0
    for k in range(most, -1, -1):
        total += share
        share *= k * (1 - p) / ((trials - k + 1) * p)
        if share < total * 1e-17:
            break
    return exp(log_term + log(total))


def _hypergeometric_tail(most: int, sample: int, population: int, breakable: int) -> Fraction:
    """P(X <= most) where X of the `sample` drawn are among the `breakable` of `population`."""
    rest = population - breakable
    first = max(0, sample - rest)
    ways = comb(breakable, first) * comb(rest, sample - first)
    favourable = 0
    for x in range(first, most + 1):
        favourable += ways
        ways = ways * (breakable - x) * (sample - x) // ((x + 1) * (rest - sample + x + 1))
    return Fraction(favourable, comb(population, sample))


def _require_counts(part: int, whole: int) -> None:
    if not 0 <= part <= whole:
        raise ValueError(f"a part is between 0 and the whole, found {part} of {whole}; are the two swapped?")
