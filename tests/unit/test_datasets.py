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
        (IMAGES.astype(np.float32), LABELS, r"must be uint8 of shape N,H,W,C.*image = image\.round\(\)\.astype"),
        (IMAGES / np.float32(255), LABELS, r"found float32 .*image = \(image \* 255\)\.round\(\)"),
        (IMAGES.astype(np.int64), LABELS, r"found int64 .*image = image\.astype\('uint8'\)"),
        (IMAGES.transpose(0, 3, 1, 2), LABELS, r"found uint8 \(4, 3, 5, 6\); .*transpose\(0, 2, 3, 1\)"),
        (IMAGES[..., [0, 1, 2, 0]], LABELS, r"leave out what is transparent with image = image\[\.\.\., :3\]"),
        (IMAGES[..., :2], LABELS, "with C 1 or 3, found"),
        (IMAGES, LABELS[:2], "must be 4 integers"),
        (IMAGES, LABELS.astype(float), r"must be 4 integers, found float64 .*astype\('int64'\)"),
        (IMAGES, np.array(list("cabc")), r"found <U1 .*numpy\.unique\(label, return_inverse=True\)\[1\], in both"),
        (IMAGES, np.eye(4)[LABELS], r"found float64 \(4, 4\); take label\.argmax\(axis=1\)"),
        (IMAGES, LABELS[:, None], r"found int64 \(4, 1\); mend it with label = label\.ravel\(\)"),
        (IMAGES, LABELS + 1, "has the label 0, although labels go to 3; number the classes from 0 without gaps"),
        (IMAGES, LABELS - 1, r"must be 0\.\.1, found -1\.\.1"),
        (IMAGES[:0], LABELS[:0], "holds no images"),
        (np.array([{"a": 1}], dtype=object), LABELS[:1], "holds arrays of Python objects, which are not read"),
    ],
)
def test_data_of_the_wrong_form(tmp_path: Path, image: np.ndarray, label: np.ndarray, sentence: str) -> None:
    save(tmp_path, "x_train", image, label)
    with pytest.raises(DatasetError, match=sentence):
        datasets.load("npz:x", "train", tmp_path)


def test_grey_images_need_no_channel_and_labels_may_be_of_any_width(tmp_path: Path) -> None:
    save(tmp_path, "x_train", IMAGES[..., 0], LABELS.astype(np.int32))
    grey = datasets.load("npz:x", "train", tmp_path)
    assert (grey.images.shape, grey.labels.dtype, grey.classes) == ((4, 5, 6, 1), np.int64, 3)


def test_both_files_of_a_data_set_are_of_one_kind(tmp_path: Path) -> None:
    save(tmp_path, "x_train", IMAGES, LABELS)
    save(tmp_path, "x_test", IMAGES[:2], LABELS[:2] % 2)  # lacks a class: there are as many all the same
    assert datasets.load("npz:x", "test", tmp_path).classes == 3
    for images, labels, sentence in [
        (IMAGES[:, :4], LABELS, "has images of 4 x 6 pixels in colour, .*x_train.npz of 5 x 6 pixels in colour"),
        (IMAGES[..., 0], LABELS, "of 5 x 6 pixels in grey, .* of 5 x 6 pixels in colour; make both alike"),
        (IMAGES, LABELS + 1, r"labels in .*x_test\.npz must be 0\.\.2, found 1\.\.3"),
    ]:
        save(tmp_path, "x_test", images, labels)
        with pytest.raises(DatasetError, match=sentence):
            datasets.load("npz:x", "test", tmp_path)
    (tmp_path / "x_train.npz").unlink()
    assert datasets.load("npz:x", "test", tmp_path).classes == 4  # nothing but the test images is known


def test_labels_beyond_the_classes(tmp_path: Path) -> None:
    save(tmp_path, "cifar10_train", IMAGES, LABELS + 8)
    with pytest.raises(DatasetError, match=r"must be 0\.\.9, found 8\.\.10"):
        datasets.load("cifar10", "train", tmp_path)


def test_a_file_that_is_no_npz(tmp_path: Path) -> None:
    path = tmp_path / "x_train.npz"
    save(tmp_path, "x_train", IMAGES, LABELS)
    whole = path.read_bytes()
    for content in (b"<html>quota exceeded</html>", whole[: len(whole) // 2], b""):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match=r"x_train\.npz is no \.npz file, or damaged; write it with numpy"):
            datasets.load("npz:x", "train", tmp_path)
    np.save(tmp_path / "one.npy", IMAGES)
    (tmp_path / "one.npy").rename(path)
    with pytest.raises(DatasetError, match=r"x_train\.npz holds one array without a name; write it"):
        datasets.load("npz:x", "train", tmp_path)
    np.savez(path, images=IMAGES, labels=LABELS)
    with pytest.raises(DatasetError, match="has no array 'image', found images, labels; write it"):
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
