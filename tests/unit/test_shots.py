"""Accuracies of classes with many, a medium number of, and few training images."""

from statistics import fmean

import pytest
from golden_kd import entry

from dkl.shots import has_tail, shots


def test_golden_groups() -> None:
    """The numbers of the reference, of predictions as they are in a test set."""
    e = entry("eval/shot_acc")
    given, expected = e["inputs"], e["outputs"]
    hits = [(label, label == said) for label, said in zip(given["labels"], given["preds"], strict=True)]
    by_class = [fmean(hit for label, hit in hits if label == k) for k in range(8)]
    assert by_class == pytest.approx(expected["per_class"])
    assert fmean(hit for _, hit in hits) == pytest.approx(expected["all_top1"])
    found = shots(given["train_counts_per_class"], by_class)
    assert found is not None
    assert found._asdict() == pytest.approx(
        {name: expected[name] for name in ("many", "medium", "few")}, abs=1e-12
    )


ROWS = {
    # All, Many, Medium, Few in percent: Cui et al., arXiv:2305.13948, table 5, ImageNet-LT
    "ResNet-18": (41.15, 63.16, 33.47, 5.88),
    "ResNet-50": (45.47, 67.25, 38.56, 8.21),
    "ResNeXt-101": (48.33, 68.91, 42.32, 11.24),
    "KL-KD, ResNeXt-101 to ResNet-18": (44.32, 64.60, 37.88, 9.53),
    "KL-KD, ResNeXt-101 to ResNet-50": (48.31, 68.83, 42.31, 11.37),
    "IKL-KD, ResNeXt-101 to ResNet-18": (45.21, 66.60, 38.53, 8.19),
    "IKL-KD, ResNeXt-101 to ResNet-50": (49.29, 70.06, 43.47, 10.99),
}
GROUPS = (385, 479, 136)


@pytest.mark.parametrize("row", ROWS)
def test_published_groups_make_up_the_whole(row: str) -> None:
    """With 385, 479 and 136 classes in the groups, as ImageNet-LT has them, to the last digit in print."""
    overall, *published = ROWS[row]
    counts = [count for count, classes in zip((101, 100, 19), GROUPS, strict=True) for _ in range(classes)]
    by_class = [accuracy for accuracy, classes in zip(published, GROUPS, strict=True) for _ in range(classes)]
    assert fmean(by_class) == pytest.approx(overall, abs=0.0101)
    assert shots(counts, by_class) == pytest.approx(published)


def test_groups_end_at_100_and_20() -> None:
    found = shots([101, 100, 20, 19, 0], [1.0, 0.5, 0.25, 0.125, 0.0625])
    assert found is not None
    assert (found.many, found.medium, found.few) == (1.0, 0.375, 0.09375)


def test_what_is_not_there_is_none_and_not_nought() -> None:
    assert shots([300, 200], [0.5, 0.5]) is None
    assert shots([5, 5], [0.5, 0.5]) is None
    found = shots([300, 30, 3], [0.5, 0.25, None])  # no test images of the last class
    assert found is not None
    assert (found.many, found.medium, found.few) == (0.5, 0.25, None)
    assert not has_tail([20, 100])
    assert has_tail([100, 101])
    assert has_tail([19, 20])
