"""Data sets: what the readers return, and what they say when something is missing or of the wrong form."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dkl import datasets
from dkl.datasets import DATASETS, DatasetError


def save(folder: Path, name: str, image: np.ndarray, label: np.ndarray, **more: np.ndarray) -> None:
    np.savez(folder / f"{name}.npz", image=image, label=label, **more)


IMAGES = np.arange(4 * 5 * 6 * 3, dtype=np.uint8).reshape(4, 5, 6, 3)
LABELS = np.array([0, 2, 1, 2])


def test_digits_are_split_once_and_for_all(tmp_path: Path) -> None:
    train = datasets.load("digits", "train", tmp_path)
    test = datasets.load("digits", "test", tmp_path)
    assert train.images.shape == (DATASETS["digits"].train_images, 8, 8, 1)
    assert test.images.shape == (DATASETS["digits"].test_images, 8, 8, 1)
    assert (train.images.max(), train.images.dtype) == (255, np.uint8)
    assert set(test.labels) == set(range(10))
    assert test.labels[:4].tolist() == [0, 5, 0, 5]


def test_own_data_and_a_packed_cifar(tmp_path: Path) -> None:
    save(tmp_path, "flowers_train", IMAGES, LABELS)
    flowers = datasets.load("npz:flowers", "train", tmp_path)
    assert flowers.classes == 3
    assert np.array_equal(flowers.images, IMAGES)
    assert flowers.labels.dtype == np.int64
    save(tmp_path, "cifar100_test", IMAGES, LABELS)
    assert datasets.load("cifar100", "test", tmp_path).classes == 100


@pytest.mark.parametrize(
    ("image", "label", "sentence"),
    [
        (IMAGES.astype(np.float32), LABELS, "must be uint8 of shape N,H,W,C"),
        (IMAGES[..., 0], LABELS, "must be uint8 of shape N,H,W,C"),
        (IMAGES[..., :2], LABELS, "with C 1 or 3"),
        (IMAGES, LABELS[:2], "must be 4 integers"),
        (IMAGES, LABELS.astype(float), "must be 4 integers"),
        (IMAGES, LABELS - 1, "must be 0, found -1..1"),
        (IMAGES[:0], LABELS[:0], "holds no images"),
        (np.array([{"a": 1}], dtype=object), LABELS[:1], "is not an .npz with arrays"),
    ],
)
def test_data_of_the_wrong_form(tmp_path: Path, image: np.ndarray, label: np.ndarray, sentence: str) -> None:
    save(tmp_path, "x_train", image, label)
    with pytest.raises(DatasetError, match=sentence):
        datasets.load("npz:x", "train", tmp_path)


def test_labels_beyond_the_classes(tmp_path: Path) -> None:
    save(tmp_path, "cifar10_train", IMAGES, LABELS + 8)
    with pytest.raises(DatasetError, match=r"must be 0\.\.9, found 8\.\.10"):
        datasets.load("cifar10", "train", tmp_path)


def test_a_file_that_is_no_npz(tmp_path: Path) -> None:
    (tmp_path / "x_train.npz").write_bytes(b"<html>quota exceeded</html>")
    with pytest.raises(DatasetError, match=r"x_train\.npz is not an \.npz"):
        datasets.load("npz:x", "train", tmp_path)


def test_missing_data_name_the_folder(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"mine_test\.npz does not exist; put it there"):
        datasets.load("npz:mine", "test", tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_without_data_and_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    import urllib.request

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(DatasetError) as caught:
        datasets.load(name, "train", tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "curl -L https://" in str(caught.value)
    assert f"{name}_train.npz" in str(caught.value)


@pytest.mark.parametrize("name", ["mnist", "npz:", "npz:a/b", "npz:../x", "npz:" + "x" * 65, "CIFAR10", ""])
def test_names_that_are_no_data_set(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choose from digits, cifar10, cifar100"):
        datasets.load(name, "train", tmp_path)


def test_names_are_known_without_what_readers_need() -> None:
    script = "import sys, dkl.datasets; print(*{'torch', 'torchvision', 'PIL', 'sklearn'} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == ""
