"""Data sets: facts about them, and readers that return uint8 arrays. Imports numpy only; readers import more.

A data directory holds a set either as its official files or as NAME_train.npz and NAME_test.npz with the
arrays `image` (uint8, N x H x W x C) and `label` (integers, N). A user's own data, `npz:NAME`, is of that form,
which `dkl.npz` reads.

`folder:NAME` or `folder:NAME@SIDE` is a folder of image files, NAME/train/CLASS/* and NAME/val/CLASS/* (or
NAME/test/CLASS/*), shown as pictures of SIDE x SIDE pixels, 224 where it is not said. The first files of all
classes come before the second ones, so that the first images of such a data set are of all classes alike.

`cifar10-lt@FACTOR` and `cifar100-lt@FACTOR` are the CIFARs with fewer and fewer training images per class, see
`dkl.longtail`. `imagenet-lt` or `imagenet-lt@SIDE` is the part of ImageNet that published lists name.
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

from dkl.longtail import class_sizes, first_of_each, rank_in_class, read_name
from dkl.npz import Arrays, DatasetError, Split, read_npz

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "DATASETS",
    "Arrays",
    "Dataset",
    "DatasetError",
    "Folder",
    "Split",
    "centre",
    "check_name",
    "is_folder",
    "known_class_names",
    "known_dataset",
    "load",
    "open_folder",
    "read_npz",
    "read_picture",
    "read_pictures",
    "show_name",
]


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


def _read_long_tailed(data_dir: Path, split: Split, *, base: str, factor: float) -> Arrays:
    """Of training images the first ones of every class, in the order of `base`; all test images."""
    whole = DATASETS[base].read(data_dir, split)
    if split == "test":
        return whole
    kept = first_of_each(whole.labels, class_sizes(len(whole.labels) / whole.classes, whole.classes, factor))
    return Arrays(whole.images[kept], whole.labels[kept], whole.classes)


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
    """The files of one split of `folder:NAME@SIDE` or `imagenet-lt@SIDE`; no picture is opened."""
    if listed := _IMAGENET_LT.fullmatch(name):
        return _open_listed(split, data_dir, side=int(listed[1] or _SIDE))
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
    for label, class_name in enumerate(class_names):
        found = _pictures(root / class_name)
        files += [f"{class_name}/{file}" for file in found]
        labels += [label] * len(found)
    return _in_turns(root, files, labels, class_names, side=int(match[2] or _SIDE))


def _in_turns(root: Path, names: list[str], of: list[int], class_names: tuple[str, ...], side: int) -> Folder:
    """The files called `names` of the classes `of`: the first ones of all classes, then the second ones, ..."""
    files, labels = np.array(names), np.array(of, np.int64)
    order = np.lexsort((labels, rank_in_class(labels)))
    return Folder(root, files[order], labels[order], class_names, side)


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


# --- images that a list names -----------------------------------------------------------------------------

_LISTED_CLASSES = tuple(map(str, range(1000)))


def _open_listed(split: Split, data_dir: Path, side: int) -> Folder:
    """The images of ImageNet that ImageNet_LT_train.txt or ImageNet_LT_test.txt in the data directory names.

    Test images are ImageNet's validation images, in folders by class or without, as are the lists in use.

    Source: Liu et al., Large-Scale Long-Tailed Recognition in an Open World, CVPR 2019.
    """
    source, root = data_dir / f"ImageNet_LT_{split}.txt", data_dir / "imagenet"
    listed, labels = _read_list(source, "val" if split == "test" else "train")
    there = _there(root, listed, also_in="val" if split == "test" else None)
    by_name = {os.path.basename(path): path for path in there} if split == "test" else {}
    files = [path if path in there else by_name.get(os.path.basename(path), path) for path in listed]
    if missing := [path for path in files if path not in there]:
        raise DatasetError(
            f"{len(missing)} of the {len(files)} images that {source} names are not in {root}: "
            f"{', '.join(missing[:3])}{', ...' * (len(missing) > 3)}; put ImageNet's (ILSVRC 2012) there, as "
            "train/CLASS/FILE, and val/FILE or val/CLASS/FILE"
        )
    return _in_turns(root, files, labels, _LISTED_CLASSES, side)


def _read_list(source: Path, folder: str) -> tuple[list[str], list[int]]:
    """Paths and labels of a list with lines such as "train/n01440764/n01440764_190.JPEG 0"."""
    try:
        lines = source.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise DatasetError(
            f"{source} cannot be read ({error.strerror}); put the list of ImageNet-LT there that is published "
            "with https://github.com/zhmiao/OpenLongTailRecognition-OLTR"
        ) from error
    form = re.compile(rf"({folder}/(?:[^/\s]+/)?[^/\s]+) ([0-9]{{1,3}})")
    matches = [form.fullmatch(line.rstrip()) for line in lines]
    if not all(matches):
        wrong = matches.index(None)
        raise DatasetError(
            f"line {wrong + 1} of {source} must be {folder}/CLASS/FILE and a label 0..999, found "
            f"{lines[wrong][:80]!r}; fetch the list again"
        )
    if not lines:
        raise DatasetError(f"{source} is empty; fetch the list again")
    rows = [match for match in matches if match]
    return [row[1] for row in rows], [int(row[2]) for row in rows]


def _there(root: Path, paths: list[str], also_in: str | None) -> set[str]:
    """Those of `paths` that are in `root`, and files of the same names in `also_in` or one folder deeper."""
    names = {os.path.basename(path) for path in paths}
    folders = {os.path.dirname(path) for path in paths}
    if also_in and (root / also_in).is_dir():
        inner = (entry.name for entry in os.scandir(root / also_in) if entry.is_dir())
        folders |= {also_in, *(f"{also_in}/{name}" for name in inner)}
    here = (folder for folder in folders if (root / folder).is_dir())
    return {f"{folder}/{name}" for folder in here for name in os.listdir(root / folder) if name in names}


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
_IMAGENET_LT = re.compile("imagenet-lt(?:@([1-9][0-9]{0,2}))?")
_SIDE = 224


def known_dataset(name: str) -> Dataset | None:
    """What is known of the data set called `name` before its files are read; None for one's own.

    Raises ValueError for an imbalance factor that is none.
    """
    if listed := _IMAGENET_LT.fullmatch(name):
        side = listed[1] or _SIDE
        title = f"ImageNet-LT, {side} x {side}"
        read = partial(_read_folder, name=name)
        return Dataset(title, _LISTED_CLASSES, train_images=115_846, test_images=50_000, read=read)
    if (tail := read_name(name)) is None:
        return DATASETS.get(name)
    base, factor = DATASETS[tail.base], float(tail.factor)
    classes = len(base.class_names)
    return replace(
        base,
        title=f"{base.title}-LT, imbalance {tail.factor:f}",
        train_images=sum(class_sizes(base.train_images / classes, classes, factor)),
        read=partial(_read_long_tailed, base=tail.base, factor=factor),
    )


def check_name(name: str) -> str:
    """`name`, if it is a known data set, `npz:NAME`, `folder:NAME` or `folder:NAME@SIDE`; else ValueError.

    A SIDE of 224, which needs no saying, and needless zeros of a FACTOR are left out: a data set has one name.
    """
    if is_folder(name):
        return name.removesuffix(f"@{_SIDE}")
    if tail := read_name(name):
        return tail.name
    if name not in DATASETS and not _OWN.fullmatch(name):
        raise ValueError(
            f"unknown dataset {name!r}; choose from {', '.join(DATASETS)}, cifar10-lt@FACTOR and "
            "cifar100-lt@FACTOR with an imbalance factor such as 100, imagenet-lt or imagenet-lt@SIDE, or "
            "npz:NAME for NAME_train.npz and NAME_test.npz of your own in the data directory, or folder:NAME or "
            "folder:NAME@SIDE (pixels, to 999) for image files in NAME/train/CLASS and NAME/val/CLASS"
        )
    return name


def is_folder(name: str) -> bool:
    """Whether `name` is a data set of image files."""
    return any(form.fullmatch(name) for form in (_FOLDER, _IMAGENET_LT))


def known_class_names(name: str) -> tuple[str, ...]:
    """The classes of a data set as it calls them; empty where only its files would tell."""
    known = known_dataset(name)
    return known.class_names if known else ()


_ELSEWHERE = {"imagenet": "ImageNet", "svhn": "SVHN", "tinyimagenet": "Tiny ImageNet"}
"""Titles of data sets that others report results on; here they are folders or files of one's own."""


def show_name(name: str) -> str:
    """The title that tables print: "CIFAR-10", "imagenet, 224 x 224", "CIFAR-100-LT, imbalance 100"."""
    if match := _FOLDER.fullmatch(name):
        side = match[2] or _SIDE
        return f"{match[1]}, {side} x {side}"
    known = known_dataset(name)
    return known.title if known else _ELSEWHERE.get(name) or name.removeprefix("npz:")


def load(name: str, split: Split, data_dir: Path) -> Arrays:
    """The arrays of one split of the data set called `name`.

    Raises DatasetError with the folder and the command that mend it.
    """
    if own := _OWN.fullmatch(name):
        return read_npz(data_dir, own[1], split)
    known = known_dataset(check_name(name))
    return known.read(data_dir, split) if known else _read_folder(data_dir, split, name=name)


def _read_folder(data_dir: Path, split: Split, *, name: str) -> Arrays:
    return read_pictures(open_folder(name, split, data_dir))
