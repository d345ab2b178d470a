"""Comparing two models on the same images: against published examples, symmetry and simulation."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from witness import evidence

from dkl.evidence import EvidenceError
from dkl.paired import Pairs, compare

BENTUR = Pairs(1, 1, 7, 12)  # Fagerland, Lydersen and Laake, Statistics in Medicine 33 (2014) 2850, section 6
CAVO = Pairs(59, 6, 16, 80)  # R package contingencytables, of the same authors, table cavo_2012
ARMITAGE = Pairs(20, 12, 2, 16)  # Armitage and Berry (1994), p. 127, exact test as StatsDirect prints it

counts = st.integers(0, 400)
tables = st.builds(Pairs, counts, counts, counts, counts).filter(lambda pairs: pairs.images)


@pytest.mark.parametrize(
    ("pairs", "difference", "interval", "digits"),
    [(BENTUR, -0.286, (-0.507, -0.026), 3), (CAVO, -0.0621, (-0.1186, -0.0046), 4)],
)
def test_published_intervals(pairs, difference, interval, digits):
    assert round(pairs.difference, digits) == difference
    assert tuple(round(limit, digits) for limit in pairs.interval()) == interval


@pytest.mark.parametrize(("pairs", "p"), [(BENTUR, 0.0703), (CAVO, 0.052479), (ARMITAGE, 0.0129)])
def test_published_p_values(pairs, p):
    assert pairs.p_value() == pytest.approx(p, abs=6e-5)


@given(tables)
def test_mcnemar_is_the_two_sided_binomial_test(pairs):
    disagreements = pairs.only_a + pairs.only_b
    expected = scipy.stats.binomtest(pairs.only_a, disagreements).pvalue if disagreements else 1.0
    assert pairs.p_value() == pytest.approx(expected, rel=1e-9)


def test_ten_thousand_disagreements_take_no_time():
    assert Pairs(0, 5000, 5000, 0).p_value() == 1.0
    assert Pairs(0, 0, 10_000, 0).p_value() == 0.0  # 2^-9999


@given(tables)
def test_the_interval_holds_the_difference_and_knows_no_order(pairs):
    low, high = pairs.interval()
    assert -1 - 1e-12 <= low <= pairs.difference <= high <= 1 + 1e-12
    swapped = Pairs(pairs.both, pairs.only_b, pairs.only_a, pairs.neither)
    assert swapped.interval() == pytest.approx((-high, -low), abs=1e-12)
    wide = pairs.interval(0.999)
    assert wide[0] <= low
    assert wide[1] >= high


def test_models_that_agree_are_told_apart_better_than_models_that_do_not():
    alike, unlike = Pairs(500, 20, 0, 480), Pairs(270, 250, 230, 250)
    assert alike.difference == unlike.difference
    assert alike.interval()[0] > 0 > unlike.interval()[0]


def test_the_interval_covers_what_it_promises():
    random = np.random.default_rng(0)
    p = [0.45, 0.10, 0.05, 0.40]
    hits = [
        low <= 0.05 <= high
        for table in random.multinomial(500, p, size=2000)
        for low, high in [Pairs(*table.tolist()).interval()]
    ]
    assert 0.935 < np.mean(hits) < 0.975


def test_two_evaluations_are_compared_clean_and_at_every_radius():
    a = evidence(radii=(0.1, 0.2), clean="11110", broken_at=(-1, 1, 0, -1, -1))
    b = evidence(radii=(0.1, 0.2), clean="11101", broken_at=(0, 0, 0, -1, 1))
    found = compare(a, b)
    assert found.images == 5
    assert found.clean == Pairs(both=3, only_a=1, only_b=1, neither=0)
    assert found.robust == (
        (0.1, Pairs(both=0, only_a=3, only_b=1, neither=1)),
        (0.2, Pairs(both=0, only_a=2, only_b=0, neither=3)),
    )
    assert compare(a, a).robust[0][1] == Pairs(both=3, only_a=0, only_b=0, neither=2)


def test_other_images_are_refused():
    with pytest.raises(EvidenceError, match="only results on the same images can be compared, found 5 images of"):
        compare(evidence(), evidence(data_sha256="f" * 64))
    with pytest.raises(EvidenceError, match="only results on the same images"):
        compare(evidence(), evidence(images=(0, 1, 2, 3, 5)))


@pytest.mark.parametrize("other", [{"radii": (0.1,)}, {"norm": "L2"}, {"radii": (0.1, 0.3)}])
def test_another_threat_is_refused(other):
    with pytest.raises(EvidenceError, match=r"only results under the same threat.*Linf \[0.1, 0.2\]"):
        compare(evidence(), evidence(**other))
