"""What is known of each image: growing stage by stage, radius by radius, and becoming one record."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from witness import SHAPE, about
from witness import finding as found

from dkl.evidence import Evidence, pictured, read_evidence, write_evidence
from dkl.tally import Tally

IMAGES = np.array([0, 2, 3, 4, 7])


def tally(wrong: list[int] = (), seed: int = 0, images: np.ndarray = IMAGES) -> Tally:
    rows = np.arange(len(images))
    made = Tally(images, rows % 3, seed)
    made.add(0, found(rows.tolist(), list(wrong), predicted=np.where(np.isin(rows, wrong), 3, rows % 3)))
    return made


# --- growing ----------------------------------------------------------------------------------------------


def test_an_image_stands_until_it_falls_and_counts_for_all_radii_from_there() -> None:
    made = tally(wrong=[4])
    assert made.standing().tolist() == [0, 1, 2, 3]
    made.begin_radius()
    made.add(1, found([0, 1, 2, 3], [1], in_8_bits=[1]))
    assert made.standing().tolist() == [0, 2, 3]
    assert made.still(np.array([0, 1, 4])).tolist() == [0]
    assert made.accuracy() == 3 / 5
    made.begin_radius()
    made.add(2, found([0, 2, 3], [0, 3]))
    assert made.robust(0).tolist() == [True, False, True, True, False]
    assert made.robust(1).tolist() == [False, False, True, False, False]
    assert made.broken_at.tolist() == [1, 0, -1, 1, -1]
    assert made.stage.tolist() == [2, 1, -1, 2, -1]


def test_margins_are_the_smallest_of_a_radius() -> None:
    made = tally()
    made.begin_radius()
    made.add(1, found([0, 1], [0], margin=0.5, flat=[1]))
    made.add(2, found([1, 2], [], margin=0.7))
    assert made.margin.tolist() == [0.5, 0.5, pytest.approx(0.7), np.inf, np.inf]
    assert made.flat.tolist() == [False, True, False, False, False]
    made.begin_radius()
    assert made.margin.tolist() == [0.5, np.inf, np.inf, np.inf, np.inf]  # the broken one keeps its own
    assert not made.flat.any()


@pytest.mark.parametrize(("count", "chosen"), [(1, 1), (19, 1), (20, 1), (21, 2), (100, 5), (101, 6), (0, 0)])
def test_the_nearest_are_those_with_the_smallest_margins_rounded_up(count: int, chosen: int) -> None:
    made = tally(images=np.arange(110))
    made.margin[:] = np.random.default_rng(0).permutation(110)
    rows = np.arange(110)[5 : 5 + count]
    nearest = made.nearest(rows, 0.05)
    assert nearest.tolist() == sorted(rows[np.argsort(made.margin[rows])][:chosen])


def test_equal_margins_are_decided_by_the_row() -> None:
    made = tally(images=np.arange(40))
    made.margin[:] = 1.0
    assert made.nearest(np.arange(40), 0.05).tolist() == [0, 1]


# --- the random sample ------------------------------------------------------------------------------------


def test_a_sample_depends_on_the_seed_and_the_images_alone() -> None:
    one = tally(images=np.arange(200))
    rows = np.arange(0, 200, 2)
    sample = one.random(rows, 30)
    assert len(set(sample.tolist())) == 30
    assert set(sample.tolist()) <= set(rows.tolist())
    assert sample.tolist() == sorted(sample.tolist())
    assert sample.tolist() == tally(images=np.arange(200)).random(rows, 30).tolist()
    assert sample.tolist() != tally(images=np.arange(200), seed=1).random(rows, 30).tolist()
    # Other images beside it change nothing of an image's luck: who is drawn of many is drawn of fewer.
    fewer = one.random(rows[rows >= 50], 30)
    assert set(sample[sample >= 50].tolist()) <= set(fewer.tolist())
    # The same images as another subset of the data set
    shifted = tally(images=np.arange(100, 300))
    assert shifted.random(rows[:50], 10).tolist() == (one.random(rows[50:], 10) - 100).tolist()


def test_a_sample_is_uniform() -> None:
    draws, count = 600, 20
    hits = Counter(
        row
        for seed in range(draws)
        for row in tally(images=np.arange(count), seed=seed).random(np.arange(count), 5)
    )
    expected = draws * 5 / count
    chi2 = sum((hits[row] - expected) ** 2 for row in range(count)) / (expected * (1 - 5 / count))
    assert 7 < chi2 < 37  # 99 % of a chi-squared with 19 degrees of freedom


def test_a_sample_may_be_empty_or_all() -> None:
    made = tally()
    assert made.random(np.arange(5), 0).tolist() == []
    assert made.random(np.arange(5), 5).tolist() == [0, 1, 2, 3, 4]
    assert made.random(np.arange(0), 0).tolist() == []


# --- the record -------------------------------------------------------------------------------------------


def assert_same(a: Evidence, b: Evidence) -> None:
    assert a.about == b.about
    for name in vars(a).keys() - {"about"}:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), strict=True)


def clean_pictures() -> tuple[np.ndarray, np.ndarray]:
    rows = pictured(about().data_sha256, len(IMAGES), SHAPE)
    return rows, np.full((len(rows), *SHAPE), 9, np.uint8)


def test_finds_become_one_record(tmp_path: Path) -> None:
    made = tally(wrong=[2])
    made.begin_radius()
    made.add(1, found([4, 3], [4], in_8_bits=[4], value=8))
    made.add(1, found([0, 1], [], margin=0.25))
    made.begin_radius()
    made.add(2, found([3, 0, 1], [3, 0], in_8_bits=[3], value=7, margin=-1.0, predicted=[5, 4, -1]))
    record = made.evidence(about(), *clean_pictures())
    assert record.images.tolist() == IMAGES.tolist()
    assert record.clean_correct.tolist() == [True, True, False, True, True]
    assert record.broken_at.tolist() == [1, -1, -1, 1, 0]
    assert record.stage.tolist() == [2, -1, -1, 2, 1]
    assert record.restart.tolist() == [0, -1, -1, 3, 4]
    assert record.step.tolist() == [70, -1, -1, 73, 84]
    np.testing.assert_array_equal(record.margin, np.array([-1, -1, np.nan, -1, 1], np.float32))
    assert record.rows8.tolist() == [3, 4]
    assert record.x8[:, 0, 0, 0].tolist() == [7, 8]
    assert record.rows32.tolist() == [0]
    assert record.x32[:, 0, 0, 0].tolist() == pytest.approx([7 / 255 + 0.001])
    assert record.predicted.tolist() == [0, 1, 3, 0, 1]
    assert record.predicted_adv.tolist() == [4, -1, -1, 5, 3]
    assert (record.x_clean == 9).all()
    write_evidence(tmp_path / "evidence", record)
    assert_same(record, read_evidence(tmp_path / "evidence"))


def test_nothing_found(tmp_path: Path) -> None:
    made = tally()
    made.begin_radius()
    record = made.evidence(about(), *clean_pictures())
    assert record.x8.shape == record.x32.shape == (0, *SHAPE)
    assert record.standing(1).all()
    write_evidence(tmp_path / "evidence", record)
    assert_same(record, read_evidence(tmp_path / "evidence"))


@pytest.mark.parametrize("stage", [0, 1])
def test_one_finding_without_predictions_makes_evidence_without(stage: int, tmp_path: Path) -> None:
    """An evaluation that a version before began."""
    made = tally()
    made.begin_radius()
    made.add(1, found([0, 1], [0], in_8_bits=[0]))
    made.add(stage, found([2], [])._replace(predicted=None))
    record = made.evidence(about(), *clean_pictures())
    assert record.about.format == 1
    assert record.predicted is record.predicted_adv is record.rows_clean is record.x_clean is None
    assert record.broken_at.tolist() == [0, -1, -1, -1, -1]
    write_evidence(tmp_path / "evidence", record)
    assert_same(record, read_evidence(tmp_path / "evidence"))
