"""Ties with the leader: p-values as the slow exact test has them, Holm's correction, and who is compared how."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dkl.intervals import wilson_interval
from dkl.paired import Pairs
from service.rows import Board, Row
from service.significance import Verdicts, disagreements, holm, mcnemar, ties

DIGITS = Board(dataset="digits", threat_model="Linf", eps=0.2)
splits = st.tuples(st.integers(0, 600), st.integers(0, 600))


@dataclass(frozen=True)
class Judged:
    row: Row
    verdicts: Verdicts | None


def judged(
    name: str, robust: int | np.ndarray, *, images: int = 1000, data: str = "d", interval: bool = True
) -> Judged:
    """A row with so many images that stand, or with these flags."""
    standing = robust if isinstance(robust, int) else int(robust.sum())
    row = Row(
        entry=name,
        name=name,
        source="measured",
        board=DIGITS,
        eps=0.2,
        architecture="CNN-32",
        clean_accuracy=0.95,
        robust_accuracy=standing / images,
        best_known_accuracy=standing / images,
        robust_interval=wilson_interval(standing, images) if interval else None,
        images=images,
        suite="AutoAttack standard",
    )
    if isinstance(robust, int):
        return Judged(row, None)
    return Judged(row, Verdicts(data, images, np.packbits(robust).tobytes()))


def marks(*judged: Judged) -> list[str | None]:
    verdicts = {one.row.entry: one.verdicts for one in judged if one.verdicts}
    return ties(0, [one.row for one in judged], verdicts)


def standing(images: int, *fallen: range) -> np.ndarray:
    flags = np.ones(images, bool)
    for some in fallen:
        flags[list(some)] = False
    return flags


# --- the test ---------------------------------------------------------------------------------------------


@given(st.lists(splits, max_size=8))
def test_many_p_values_are_those_of_one_at_a_time(some: list[tuple[int, int]]) -> None:
    only_a, only_b = (np.array([split[side] for split in some], np.int64) for side in (0, 1))
    expected = [Pairs(3, a, b, 5).p_value() for a, b in some]
    assert mcnemar(only_a, only_b).tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("a", "b"), [(4900, 5100), (5000, 5000), (0, 10_000), (24_700, 25_300), (1, 0), (0, 0)])
def test_p_values_of_large_test_sets(a: int, b: int) -> None:
    (p,) = mcnemar(np.array([a]), np.array([b]))
    assert p == pytest.approx(Pairs(0, a, b, 0).p_value(), rel=1e-8)


@given(st.integers(1, 70), st.integers(1, 5), st.randoms(use_true_random=False))
def test_disagreements_are_counted_bit_by_bit(images: int, others: int, chance) -> None:
    flags = [np.array([chance.random() < 0.5 for _ in range(images)]) for _ in range(others + 1)]
    packed = [np.packbits(some).tobytes() for some in flags]
    only_one, only_other = disagreements(packed[0], packed[1:])
    assert only_one.tolist() == [int((flags[0] & ~other).sum()) for other in flags[1:]]
    assert only_other.tolist() == [int((~flags[0] & other).sum()) for other in flags[1:]]


def test_holms_steps_are_those_of_his_paper() -> None:
    # 0.01 <= 0.05 / 4, 0.013 <= 0.05 / 3, 0.03 > 0.05 / 2, and nothing after the first that holds.
    assert (holm(np.array([0.03, 0.01, 0.04, 0.013])) <= 0.05).tolist() == [False, True, False, True]
    assert (holm(np.array([0.02, 0.02, 0.001])) <= 0.05).tolist() == [True, True, True]
    assert (holm(np.array([0.9, 0.0499])) <= 0.05).tolist() == [False, False]
    assert holm(np.array([])).tolist() == []


def test_holm_as_r_corrects() -> None:
    corrected = holm(np.array([0.01, 0.04, 0.03, 0.005]))  # p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert corrected.tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), max_size=15), st.sampled_from([0.01, 0.05, 0.2]))
def test_values_corrected_by_holm_are_below_a_level_where_he_rejects(p_values: list[float], level: float) -> None:
    rejected, order = set(), sorted(range(len(p_values)), key=p_values.__getitem__)
    for rank, at in enumerate(order):
        if p_values[at] * (len(p_values) - rank) > level:
            break
        rejected.add(at)
    assert set(np.flatnonzero(holm(np.array(p_values)) <= level).tolist()) == rejected


def test_shared_flags_tell_apart_what_intervals_cannot() -> None:
    leader = judged("leader", standing(1000, range(0, 400)))
    worse = judged("worse", standing(1000, range(0, 420)))  # falls on 20 images more, and on none less
    unpaired = judged("unpaired", standing(1000, range(0, 420)), data="other images")
    assert marks(leader, worse) == [None, None]
    assert marks(leader, unpaired) == [None, "intervals"]


def test_rows_that_differ_by_chance_are_tied() -> None:
    leader = judged("leader", standing(1000, range(0, 400)))
    near = judged("near", standing(1000, range(100, 505)))
    far = judged("far", 300)
    assert marks(leader, near, far) == [None, "paired", None]


def test_more_rows_ask_for_more_evidence() -> None:
    leader = judged("leader", standing(1000, range(0, 400)))
    worse = judged("worse", standing(1000, range(0, 407)))  # p = 2 / 2^7 = 0.0156
    twins = [judged(f"twin {number}", standing(1000, range(0, 400))) for number in range(3)]
    assert marks(leader, worse) == [None, None]
    assert marks(leader, worse, *twins) == [None, "paired", "paired", "paired", "paired"]


def test_rows_without_flags_go_by_intervals_and_without_intervals_are_not_marked() -> None:
    leader = judged("leader", 600)
    flags = standing(1000, range(0, 410))
    assert marks(leader, judged("flags", flags), judged("near", 580), judged("far", 400)) == [
        None, "intervals", "intervals", None,
    ]  # fmt: skip
    assert marks(leader, judged("silent", 600, interval=False)) == [None, None]
    assert marks(judged("silent", 600, interval=False), leader) == [None, None]


def test_fewer_images_are_other_images() -> None:
    leader = judged("leader", standing(1000, range(0, 400)))
    half = judged("half", standing(500, range(0, 200)), images=500)
    assert marks(leader, half) == [None, "intervals"]


def test_what_others_have_shown_counts_and_not_only_the_suite() -> None:
    leader = judged("leader", 600)
    broken = judged("broken", 598)
    broken = Judged(broken.row.model_copy(update={"best_known_accuracy": 0.45}), None)
    assert marks(leader, broken) == [None, None]


def test_a_long_board_is_marked_as_the_slow_test_would() -> None:
    chance = np.random.default_rng(0)
    flags = [chance.random(1000) < 0.5 + 0.0001 * place for place in range(2500)]
    rows = [judged(f"{place:04}", some) for place, some in enumerate(flags)]
    leader = max(range(2500), key=lambda place: rows[place].row.robust_accuracy)
    verdicts = {one.row.entry: one.verdicts for one in rows if one.verdicts}
    found = ties(leader, [one.row for one in rows], verdicts)
    exact = {place: _p_value(flags[leader], flags[place]) for place in range(2500) if place != leader}
    for tested, place in enumerate(sorted(exact, key=exact.__getitem__)):
        if exact[place] > 0.05 / (2499 - tested):
            break
        assert found[place] is None
    assert found.count("paired") == 2499 - tested
    assert 0 < tested < 2499


def _p_value(a: np.ndarray, b: np.ndarray) -> float:
    return Pairs(0, int((a & ~b).sum()), int((~a & b).sum()), 0).p_value()
