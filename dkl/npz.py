"""Data sets as pairs of .npz files: NAME_train.npz and NAME_test.npz with the arrays `image` and `label`.

image: uint8 (N, H, W, C) with C 1 or 3, or (N, H, W) for grey ones; label: integers (N,), the classes from 0 on.
What is of another form is refused, with the line of numpy that mends it.
"""

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "test"]


class DatasetError(ValueError):
    """The data are missing or not of the expected form; the message says what to put where."""


@dataclass(frozen=True)
class Arrays:
    """One split. images: uint8 (N, H, W, C) with C 1 or 3; labels: int64 (N,) in [0, classes)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: int


def read_npz(data_dir: Path, name: str, split: Split, classes: int | None = None) -> Arrays:
    """NAME_SPLIT.npz from `data_dir`.

    Without `classes` there are as many as the training labels say, or the test labels where there is no training
    file; test images must then be of the size of the training images. DatasetError with a sentence otherwise.
    """
    path = data_dir / f"{name}_{split}.npz"
    if not path.exists():
        raise DatasetError(f"{path} does not exist; put it there, with arrays image (uint8 N,H,W,C) and label")
    found = _read(path, "image", "label")
    images, labels = _images(path, found["image"]), _labels(path, found["label"], len(found["image"]))
    train = data_dir / f"{name}_train.npz"
    if classes is None and split == "train":
        classes = int(labels.max()) + 1
        if missing := sorted(set(range(classes)) - set(labels.tolist())):
            raise DatasetError(
                f"no image in {path} has the label {missing[0]}, although labels go to {classes - 1}; number the "
                f"classes from 0 without gaps: {_NUMBER}"
            )
    elif classes is None and train.exists():
        learnt = _read(train, "label")["label"]
        classes = int(_labels(train, learnt, len(learnt)).max()) + 1
        _require_alike(path, images, train)
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or (classes is not None and highest >= classes):
        limit = "" if classes is None else f"..{classes - 1}"
        raise DatasetError(f"labels in {path} must be 0{limit}, found {lowest}..{highest}")
    return Arrays(images, labels, classes or highest + 1)


_NUMBER = "label = numpy.unique(label, return_inverse=True)[1]"


def _read(path: Path, *names: str) -> Mapping[str, NDArray[Any]]:
    """These arrays of the file; nothing in it is unpickled."""
    try:
        with path.open("rb") as opened:
            file = np.load(opened, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise DatasetError(f"{path} holds one array without a name; {_SAVE}")
            if missing := [name for name in names if name not in file.files]:
                found = ", ".join(file.files) or "nothing"
                raise DatasetError(f"{path} has no array {missing[0]!r}, found {found}; {_SAVE}")
            return {name: file[name] for name in names}
    except DatasetError:
        raise
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if "Object arrays" in str(error):
            raise DatasetError(f"{path} holds arrays of Python objects, which are not read; {_SAVE}") from error
        raise DatasetError(f"{path} is no .npz file, or damaged; {_SAVE}") from error


_SAVE = "write it with numpy.savez(FILE, image=..., label=...): image uint8 N,H,W,C, label whole numbers from 0"


def _images(path: Path, images: NDArray[Any]) -> NDArray[np.uint8]:
    if images.dtype == np.uint8 and images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise DatasetError(
            f"image in {path} must be uint8 of shape N,H,W,C with C 1 or 3, found {images.dtype} {images.shape}"
            f"{_way_out(images)}"
        )
    if not images.size:
        raise DatasetError(f"{path} holds no images")
    return images


def _way_out(images: NDArray[Any]) -> str:
    """How most arrays of the wrong form are mended; empty where nobody knows."""
    if np.issubdtype(images.dtype, np.floating) and images.size:
        pixels = "(image * 255)" if images.max() <= 1 else "image"
        return f"; mend it with image = {pixels}.round().astype('uint8')"
    if images.dtype != np.uint8:
        return "; mend it with image = image.astype('uint8'), for values from 0 to 255"
    if images.ndim == 4 and images.shape[1] in (1, 3):
        return "; mend it with image = image.transpose(0, 2, 3, 1)"
    if images.ndim == 4 and images.shape[3] == 4:
        return "; leave out what is transparent with image = image[..., :3]"
    return ""


def _labels(path: Path, labels: NDArray[Any], count: int) -> NDArray[np.int64]:
    if labels.shape == (count,) and np.issubdtype(labels.dtype, np.integer):
        return labels.astype(np.int64)
    mend = ""
    if labels.dtype.kind in "US":
        mend = f"; number the classes in alphabetical order with {_NUMBER}, in both files alike"
    elif labels.ndim == 2 and labels.shape[0] == count:
        mend = "; mend it with label = label.ravel()" if labels.shape[1] == 1 else "; take label.argmax(axis=1)"
    elif np.issubdtype(labels.dtype, np.floating):
        mend = "; mend it with label = label.astype('int64')"
    raise DatasetError(f"label in {path} must be {count} integers, found {labels.dtype} {labels.shape}{mend}")


def _require_alike(path: Path, images: NDArray[np.uint8], train: Path) -> None:
    """The training images' header alone is read."""
    with zipfile.ZipFile(train) as archive:
        if "image.npy" not in archive.namelist():
            raise DatasetError(f"{train} has no array 'image'; {_SAVE}")
        file = archive.open("image.npy")
        with file:
            version = np.lib.format.read_magic(file)
            read = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            shape = read(file)[0]
    expected = shape[1:] if len(shape) == 4 else (*shape[1:], 1)
    if images.shape[1:] != expected:
        raise DatasetError(
            f"{path} has images of {_size(images.shape[1:])}, {train} of {_size(expected)}; make both alike"
        )


def _size(shape: tuple[int, ...]) -> str:
    height, width, channels = shape
    return f"{height} x {width} pixels in {'colour' if channels == 3 else 'grey'}"
