"""The hash of training images: equal for equal images and labels, another for any difference that it can see."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dkl import data_hash
from dkl.data_hash import of_arrays, of_folder, of_mixture
from dkl.datasets import Arrays, Folder


def arrays(seed: int = 0, count: int = 30) -> Arrays:
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, 4, 4, 1), np.uint8)
    return Arrays(images, random.integers(0, 3, count), 3)


def folder(root: Path, changed: str = "") -> Folder:
    root.mkdir(exist_ok=True)
    names = [f"{number}.png" for number in range(12)]
    for name in names:
        (root / name).write_bytes(f"a picture, {name}{' changed' * (name == changed)}".encode())
    return Folder(root, np.array(names), np.arange(12) % 3, ("a", "b", "c"), 8)


def test_equal_images_have_equal_hashes(tmp_path: Path) -> None:
    assert of_arrays(arrays()) == of_arrays(arrays())
    assert of_mixture(arrays(), arrays(1)) == of_mixture(arrays(), arrays(1))
    assert of_folder(folder(tmp_path / "one")) == of_folder(folder(tmp_path / "two"))


def pixel(data: Arrays) -> Arrays:
    data.images[7, 0, 0, 0] ^= 1
    return data


def label(data: Arrays) -> Arrays:
    data.labels[7] ^= 1
    return data


def fewer(data: Arrays) -> Arrays:
    return Arrays(data.images[:-1], data.labels[:-1], data.classes)


@pytest.mark.parametrize("change", [pixel, label, fewer])
def test_other_images_have_other_hashes(change: Callable[[Arrays], Arrays]) -> None:
    assert of_arrays(change(arrays())) != of_arrays(arrays())
    assert of_mixture(change(arrays()), arrays(1)) != of_mixture(arrays(), arrays(1))
    assert of_mixture(arrays(), change(arrays(1))) != of_mixture(arrays(), arrays(1))


def test_other_files_have_other_hashes(tmp_path: Path) -> None:
    whole = folder(tmp_path)
    known = of_folder(whole)
    assert of_folder(whole.part(0, 11)) != known
    assert of_folder(folder(tmp_path, changed="7.png")) != known


def test_of_many_images_some_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_hash, "SAMPLED", 4)
    known = of_mixture(arrays(), arrays(1))
    seen = []
    for row in range(30):
        changed = arrays(1)
        changed.images[row] ^= 1
        if of_mixture(arrays(), changed) != known:
            seen.append(row)
    assert seen == [0, 9, 19, 29]
