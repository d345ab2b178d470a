"""From flags to numbers."""

import numpy as np
import pytest

from dkl.events import ChunkDone, Stage
from dkl.summary import say_once, summarise, wilson_interval

NAMES = ("clean", "apgd-ce", "square")


def chunk(number: int, *standing: str, names=NAMES, warnings=(), rejected=0) -> ChunkDone:
    stages = tuple(
        Stage(name=n, standing=s, seconds=i + 1) for i, (n, s) in enumerate(zip(names, standing, strict=True))
    )
    return ChunkDone(
        chunk=number, chunks=2, first_image=0, stages=stages, rejected=rejected, warnings=tuple(warnings)
    )


def summary(chunks, labels, classes=3):
    return summarise(
        chunks,
        np.array(labels),
        classes=classes,
        checkpoint_sha256="a" * 64,
        architecture="CNN-4",
        engine="hand",
    )


def test_numbers_from_hand_made_flags():
    chunks = [
        chunk(1, "11", "01", "01", warnings=["b"], rejected=2),
        chunk(0, "1110", "1100", "1000", warnings=["a"], rejected=1),
    ]
    result = summary(chunks, [0, 0, 1, 1, 0, 2], classes=4)
    assert result.images == 6
    assert result.clean_accuracy == 5 / 6
    assert result.robust_accuracy == 2 / 6
    assert [stage.name for stage in result.stages] == list(NAMES)
    assert [stage.accuracy for stage in result.stages] == [5 / 6, 3 / 6, 2 / 6]
    assert [stage.seconds for stage in result.stages] == [2, 4, 6]
    assert result.seconds == 12
    assert result.class_robust_accuracy == (1 / 3, 0.0, 1.0, None)
    assert result.rejected == 3
    assert result.warnings[:2] == ("a", "b")
    assert result.robust_interval == wilson_interval(2, 6)


def test_the_clean_pass_alone():
    result = summary([chunk(0, "101", names=("clean",))], [0, 1, 2])
    assert result.robust_accuracy == result.clean_accuracy == 2 / 3


def test_labels_must_match():
    with pytest.raises(AssertionError, match="3 flags for 2 images"):
        summary([chunk(0, "101", names=("clean",))], [0, 1])


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


def test_square_that_finds_more_is_a_warning():
    flags = "1" * 500
    result = summary([chunk(0, flags, flags, "1" * 498 + "00")], [0] * 500)
    assert result.warnings == (
        "square, which uses no gradients, broke 0.40% of the images where the attacks with gradients had failed; "
        "these may mislead: try more queries and restarts, or an adaptive attack",
    )


@pytest.mark.parametrize(
    ("names", "standing"),
    [
        (NAMES, ("1" * 500, "1" * 500, "1" * 499 + "0")),  # 0.2 points are AutoAttack's threshold
        (("clean", "square"), ("1" * 500, "0" * 500)),  # nothing to compare with
        (("clean", "square", "apgd-t"), ("1" * 500, "0" * 500, "0" * 500)),  # gradients find as much
    ],
)
def test_square_is_no_surprise(names, standing):
    assert summary([chunk(0, *standing, names=names)], [0] * 500).warnings == ()


def test_say_once():
    sentences = ["3 points", "other", "2.5 points", "other", "points"]
    assert say_once(sentences) == ("3 points", "other", "points")
