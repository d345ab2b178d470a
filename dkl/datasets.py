"""Data sets: facts about them, and readers that return uint8 arrays. Imports numpy only; readers import more.

A data directory holds a set either as its official files or as NAME_train.npz and NAME_test.npz with the
arrays `image` (uint8, N x H x W x C) and `label` (integers, N). A user's own data, `npz:NAME`, is of that form.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

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


@dataclass(frozen=True)
class Dataset:
    title: str
    class_names: tuple[str, ...]
    train_images: int
    test_images: int
    read: Callable[[Path, Split], Arrays]


def _read_digits(data_dir: Path, split: Split) -> Arrays:
    """The UCI handwritten digits inside scikit-learn: 1,797 images of 8 x 8; every fifth one is a test image."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    is_test = np.arange(len(digits.target)) % 5 == 0
    chosen = is_test if split == "test" else ~is_test
    pixels = np.rint(digits.images[chosen] * (255 / 16)).astype(np.uint8)  # 17 grey levels, 0..16
    return Arrays(pixels[..., None], digits.target[chosen].astype(np.int64), classes=10)


def _read_cifar(data_dir: Path, split: Split, *, name: Literal["cifar10", "cifar100"]) -> Arrays:
    if (data_dir / f"{name}_{split}.npz").exists():
        return read_npz(data_dir, name, split, classes=len(DATASETS[name].class_names))
    import torchvision.datasets

    reader = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        data = reader(data_dir, train=split == "train", download=True)  # checks MD5 sums, found or fetched
    except (OSError, RuntimeError) as error:
        raise DatasetError(
            f"{name} is not in {data_dir} and could not be downloaded ({error}). "
            f"Fetch it where there is a network with: curl -L {reader.url} | tar xz -C {data_dir}   "
            f"or put {name}_train.npz and {name}_test.npz there (arrays image: uint8 N,H,W,3 and label)"
        ) from error
    return Arrays(np.asarray(data.data), np.asarray(data.targets, np.int64), len(DATASETS[name].class_names))


def read_npz(data_dir: Path, name: str, split: Split, classes: int | None = None) -> Arrays:
    """NAME_SPLIT.npz from `data_dir`. Without `classes` there are as many as the largest label says."""
    path = data_dir / f"{name}_{split}.npz"
    if not path.exists():
        raise DatasetError(f"{path} does not exist; put it there, with arrays image (uint8 N,H,W,C) and label")
    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels = file["image"], file["label"]
    except (KeyError, ValueError, OSError) as error:
        raise DatasetError(f"{path} is not an .npz with arrays image and label: {error}") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise DatasetError(
            f"image in {path} must be uint8 of shape N,H,W,C with C 1 or 3, found {images.dtype} {images.shape}"
        )
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise DatasetError(f"label in {path} must be {len(images)} integers, found {labels.dtype} {labels.shape}")
    if len(labels) == 0:
        raise DatasetError(f"{path} holds no images")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or (classes is not None and highest >= classes):
        limit = "" if classes is None else f"..{classes - 1}"
        raise DatasetError(f"labels in {path} must be 0{limit}, found {lowest}..{highest}")
    return Arrays(images, labels.astype(np.int64), classes or highest + 1)


_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100 = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can "
    "castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin "
    "elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard "
    "lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear "
    "pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal "
    "shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank "
    "telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)

DATASETS: dict[str, Dataset] = {
    "digits": Dataset("Handwritten digits", tuple("0123456789"), 1437, 360, _read_digits),
    "cifar10": Dataset("CIFAR-10", tuple(_CIFAR10.split()), 50_000, 10_000, partial(_read_cifar, name="cifar10")),
    "cifar100": Dataset(
        "CIFAR-100", tuple(_CIFAR100.split()), 50_000, 10_000, partial(_read_cifar, name="cifar100")
    ),
}

_OWN = re.compile(r"npz:([A-Za-z0-9][A-Za-z0-9_-]{0,63})")


def check_name(name: str) -> str:
    """`name`, if it is a known data set or `npz:NAME`; else ValueError with the choices."""
    if name not in DATASETS and not _OWN.fullmatch(name):
        raise ValueError(
            f"unknown dataset {name!r}; choose from {', '.join(DATASETS)}, or npz:NAME for NAME_train.npz and "
            "NAME_test.npz of your own in the data directory"
        )
    return name


def show_name(name: str) -> str:
    """The title that tables print: "CIFAR-10"."""
    return DATASETS[name].title if name in DATASETS else name.removeprefix("npz:")


def load(name: str, split: Split, data_dir: Path) -> Arrays:
    """The arrays of one split of the data set called `name`.

    Raises DatasetError with the folder and the command that mend it.
    """
    own = _OWN.fullmatch(name)
    return read_npz(data_dir, own[1], split) if own else DATASETS[check_name(name)].read(data_dir, split)
