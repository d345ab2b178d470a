"""Bounds on fractions against published tables, closed forms and enumeration."""

from fractions import Fraction
from itertools import combinations

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from dkl.intervals import clopper_pearson_upper, hypergeometric_upper, wilson_interval

# --- Wilson -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 10, 10_000])
def test_wilson_interval_at_the_ends(n):
    z2 = 1.959964**2
    assert wilson_interval(0, n) == pytest.approx((0.0, z2 / (n + z2)), abs=1e-6)
    assert wilson_interval(n, n) == pytest.approx((n / (n + z2), 1.0), abs=1e-6)


@pytest.mark.parametrize("successes", [1, 37, 119])
def test_wilson_interval_solves_its_equation(successes):
    for p_limit in wilson_interval(successes, 120):
        z = (successes / 120 - p_limit) / (p_limit * (1 - p_limit) / 120) ** 0.5
        assert abs(z) == pytest.approx(1.959964, abs=1e-6)


NEWCOMBE = {  # R. G. Newcombe, Statistics in Medicine 17 (1998) 857, Table I: (Wilson), upper Clopper-Pearson
    (81, 263): ((0.2553, 0.3662), 0.3676),
    (15, 148): ((0.0624, 0.1605), 0.1617),
    (0, 20): ((0.0, 0.1611), 0.1684),
    (1, 29): ((0.0061, 0.1718), 0.1776),
}


@pytest.mark.parametrize("counts", NEWCOMBE)
def test_published_intervals(counts):
    wilson, upper = NEWCOMBE[counts]
    assert wilson_interval(*counts) == pytest.approx(wilson, abs=6e-5)
    assert clopper_pearson_upper(*counts, confidence=0.975) == pytest.approx(upper, abs=6e-5)


# --- Clopper and Pearson ----------------------------------------------------------------------------------


@given(st.integers(1, 20_000), st.data(), st.sampled_from([0.5, 0.9, 0.95, 0.999]))
def test_clopper_pearson_is_the_quantile_of_a_beta_distribution(trials, data, confidence):
    broken = data.draw(st.integers(0, trials - 1))
    expected = scipy.stats.beta.ppf(confidence, broken + 1, trials - broken)
    assert clopper_pearson_upper(broken, trials, confidence) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("trials", [1, 7, 300, 10_000])
def test_clopper_pearson_at_the_ends(trials):
    assert clopper_pearson_upper(0, trials) == pytest.approx(1 - 0.05 ** (1 / trials), rel=1e-12)
    assert clopper_pearson_upper(trials, trials) == 1.0
    assert clopper_pearson_upper(0, 0) == 1.0


# --- a finite population ----------------------------------------------------------------------------------


def drawings(population: int, sample: int, breakable: int) -> list[int]:
    """How many of the breakable ones each possible sample holds."""
    return [sum(i < breakable for i in drawn) for drawn in combinations(range(population), sample)]


@pytest.mark.parametrize("population", range(1, 9))
def test_every_small_case_by_enumeration(population):
    for sample in range(population + 1):
        seen = {k: drawings(population, sample, k) for k in range(population + 1)}
        for broken in range(sample + 1):
            rejected_least = Fraction(1, 20)
            possible = [
                k
                for k, counts in seen.items()
                if Fraction(sum(count <= broken for count in counts), len(counts)) > rejected_least
                and broken <= k <= population - (sample - broken)
            ]
            assert hypergeometric_upper(broken, sample, population) == max(possible)


@pytest.mark.parametrize(("population", "sample"), [(8, 4), (60, 20), (200, 30)])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_it_is_too_low_in_no_more_samples_than_promised(population, sample, confidence):
    bounds = [hypergeometric_upper(broken, sample, population, confidence) for broken in range(sample + 1)]
    assert bounds == sorted(bounds)
    for breakable in range(population + 1):
        law = scipy.stats.hypergeom(population, breakable, sample)
        missed = sum(law.pmf(broken) for broken in range(sample + 1) if bounds[broken] < breakable)
        assert missed <= 1 - confidence + 1e-12


@given(st.integers(1, 10_000), st.data())
def test_the_bound_is_the_last_that_the_sample_leaves_possible(population, data):
    sample = data.draw(st.integers(1, min(population, 500)))
    broken = data.draw(st.integers(0, sample))
    bound = hypergeometric_upper(broken, sample, population)
    assert broken <= bound <= population - (sample - broken)
    assert scipy.stats.hypergeom.cdf(broken, population, bound, sample) > 0.05 - 1e-9
    if bound < population - (sample - broken):
        assert scipy.stats.hypergeom.cdf(broken, population, bound + 1, sample) <= 0.05 + 1e-9


def test_what_was_looked_at_as_a_whole_is_known():
    assert [hypergeometric_upper(broken, 10, 10) for broken in range(11)] == list(range(11))
    assert hypergeometric_upper(0, 0, 25) == 25
    assert hypergeometric_upper(5000, 6000, 10_000) < 10_000 * clopper_pearson_upper(5000, 6000)


def test_a_large_population_is_like_drawing_with_replacement():
    fraction = hypergeometric_upper(3, 300, 10**7) / 10**7
    assert fraction == pytest.approx(clopper_pearson_upper(3, 300), rel=1e-3)


@pytest.mark.parametrize(("broken", "sample", "population"), [(-1, 3, 9), (4, 3, 9), (1, 10, 9)])
def test_impossible_counts_are_refused(broken, sample, population):
    with pytest.raises(ValueError, match="are the two swapped"):
        hypergeometric_upper(broken, sample, population)
    with pytest.raises(ValueError, match="found 4 of 3"):
        clopper_pearson_upper(4, 3)
