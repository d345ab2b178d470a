"""Data sets: facts about them, and readers that return uint8 arrays. Imports numpy only; readers import more.

A data directory holds a set either as its official files or as NAME_train.npz and NAME_test.npz with the
arrays `image` (uint8, N x H x W x C) and `label` (integers, N). A user's own data, `npz:NAME`, is of that form.

`folder:NAME` or `folder:NAME@SIDE` is a folder of image files, NAME/train/CLASS/* and NAME/val/CLASS/* (or
NAME/test/CLASS/*), shown as pictures of SIDE x SIDE pixels, 224 where it is not said. The first files of all
classes come before the second ones, so that the first images of such a data set are of all classes alike.
"""

import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

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


# --- folders of image files -------------------------------------------------------------------------------

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}


@dataclass(frozen=True)
class Folder:
    """One split of image files. files: names relative to root; labels: int64, positions in class_names."""

    root: Path
    files: NDArray[np.str_]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    side: int

    def part(self, first: int, end: int) -> "Folder":
        """The files number `first` to `end`, without `end`."""
        return replace(self, files=self.files[first:end], labels=self.labels[first:end])


def open_folder(name: str, split: Split, data_dir: Path) -> Folder:
    """The files of one split of `folder:NAME@SIDE`; none of them is opened."""
    match = _FOLDER.fullmatch(name)
    assert match is not None, name
    base = data_dir / match[1]
    root = _split_root(base, split)
    class_names = _class_names(root)
    other = _split_root(base, "test" if split == "train" else "train")
    if other.is_dir() and (odd := sorted(set(class_names) ^ set(_class_names(other)))):
        raise DatasetError(
            f"{root} and {other} must have the same class folders, found {', '.join(odd[:5])} in one of them only"
        )
    files: list[str] = []
    labels: list[int] = []
    ranks: list[int] = []
    for label, class_name in enumerate(class_names):
        found = _pictures(root / class_name)
        files += [f"{class_name}/{file}" for file in found]
        labels += [label] * len(found)
        ranks += range(len(found))
    order = np.lexsort((labels, ranks))
    return Folder(
        root, np.array(files)[order], np.array(labels, np.int64)[order], class_names, int(match[2] or _SIDE)
    )


def _split_root(base: Path, split: Split) -> Path:
    if split == "test" and (base / "test").is_dir() and not (base / "val").is_dir():
        return base / "test"
    return base / ("val" if split == "test" else "train")


def _class_names(root: Path) -> tuple[str, ...]:
    if not root.is_dir():
        raise DatasetError(
            f"{root} does not exist; put one folder of images per class there, as {root / 'CLASS' / '*.jpg'}"
        )
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DatasetError(f"{root} has no class folders; put one folder of images per class there")
    return tuple(names)


def _pictures(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    pictures = [name for name in names if os.path.splitext(name)[1].lower() in _SUFFIXES]
    if not pictures:
        raise DatasetError(f"{folder} holds no images; put some there, or remove the class from all splits")
    return pictures


def read_picture(path: Path) -> "Image":
    """The picture in the file `path`, in RGB. Raises DatasetError naming it where it cannot be decoded."""
    from PIL import Image

    try:
        with Image.open(path) as file:
            return file.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # of Pillow's readers
        raise DatasetError(f"{path} is not a picture that can be read: {error}; replace or remove it") from error


def centre(picture: "Image", side: int) -> "Image":
    """The middle of a picture: the shorter side is made side * 256 / 224 long, then `side` x `side` is cut out."""
    from PIL.Image import Resampling

    short = round(side * 256 / 224)
    width, height = (int(short * length / min(picture.size)) for length in picture.size)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return picture.resize((width, height), Resampling.BILINEAR).crop((left, top, left + side, top + side))


def read_pictures(folder: Folder) -> Arrays:
    """All pictures of `folder` as they are judged: uint8 (N, SIDE, SIDE, 3), each one's `centre`."""
    images = np.empty((len(folder.labels), folder.side, folder.side, 3), np.uint8)

    def read(row: int) -> None:
        images[row] = np.asarray(centre(read_picture(folder.root / str(folder.files[row])), folder.side))

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        for _ in threads.map(read, range(len(images))):
            pass
    return Arrays(images, folder.labels, len(folder.class_names))


# --- all of them ------------------------------------------------------------------------------------------

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

_NAME = "([A-Za-z0-9][A-Za-z0-9_-]{0,63})"
_OWN = re.compile(f"npz:{_NAME}")
_FOLDER = re.compile(f"folder:{_NAME}(?:@([1-9][0-9]{{0,2}}))?")
_SIDE = 224


def check_name(name: str) -> str:
    """`name`, if it is a known data set, `npz:NAME`, `folder:NAME` or `folder:NAME@SIDE`; else ValueError.

    A SIDE of 224, which needs no saying, is left out, so that a data set has one name.
    """
    if is_folder(name):
        return name.removesuffix(f"@{_SIDE}")
    if name not in DATASETS and not _OWN.fullmatch(name):
        raise ValueError(
            f"unknown dataset {name!r}; choose from {', '.join(DATASETS)}, or npz:NAME for NAME_train.npz and "
            "NAME_test.npz of your own in the data directory, or folder:NAME or folder:NAME@SIDE (pixels, to 999) "
            "for image files in NAME/train/CLASS and NAME/val/CLASS"
        )
    return name


def is_folder(name: str) -> bool:
    """Whether `name` is a folder of image files."""
    return _FOLDER.fullmatch(name) is not None


_ELSEWHERE = {"imagenet": "ImageNet", "svhn": "SVHN", "tinyimagenet": "Tiny ImageNet"}
"""Titles of data sets that others report results on; here they are folders or files of one's own."""


def show_name(name: str) -> str:
    """The title that tables print: "CIFAR-10", "imagenet, 224 x 224"."""
    if match := _FOLDER.fullmatch(name):
        side = match[2] or _SIDE
        return f"{match[1]}, {side} x {side}"
    if name in DATASETS:
        return DATASETS[name].title
    return _ELSEWHERE.get(name) or name.removeprefix("npz:")


def load(name: str, split: Split, data_dir: Path) -> Arrays:
    """The arrays of one split of the data set called `name`.

    Raises DatasetError with the folder and the command that mend it.
    """
    if is_folder(name):
        return read_pictures(open_folder(name, split, data_dir))
    own = _OWN.fullmatch(name)
    return read_npz(data_dir, own[1], split) if own else DATASETS[check_name(name)].read(data_dir, split)
