"""Test images under common corruptions: the authors' published files, or made here. No torch.

Source: Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations,
arXiv:1903.12261.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dkl.datasets import Arrays, DatasetError
from dkl.protocols import CORRUPTIONS, PUBLISHED_CORRUPTIONS, Corruption, CorruptionProtocol, Severity

Images = NDArray[np.uint8]
"""(N, H, W, C)"""


@dataclass(frozen=True)
class Corrupted:
    """The test images of a data set under common corruptions."""

    title: str
    """Where they come from, as tables print it: "CIFAR-10-C"."""
    notes: tuple[str, ...]
    """What a reader of results on them has to know."""
    read: Callable[[Corruption, Severity, range], Images]
    """The images at these positions of the test split under one corruption."""


def corrupted_images(protocol: CorruptionProtocol, arrays: Arrays, data_dir: Path) -> Corrupted:
    """Where `protocol` finds its images; `arrays` is the whole clean test split.

    Raises DatasetError, before any image is read, where they are not to be had.
    """
    if protocol.source == "generated":
        return _generated(protocol, arrays)
    return _published(PUBLISHED_CORRUPTIONS[protocol.dataset], protocol.corruptions, arrays, data_dir)


# --- published --------------------------------------------------------------------------------------------

_RECORDS = {
    "CIFAR-10-C": "https://zenodo.org/records/2535967",
    "CIFAR-100-C": "https://zenodo.org/records/3555552",
}
_SEVERITIES = 5


def _published(title: str, corruptions: Sequence[Corruption], arrays: Arrays, data_dir: Path) -> Corrupted:
    """The files as their authors lay them out: per corruption all images at severity 1, then all at 2, ..."""
    folder = data_dir / title
    names = [*corruptions, "labels"]
    if missing := [f"{name}.npy" for name in names if not (folder / f"{name}.npy").is_file()]:
        record = _RECORDS[title]
        raise DatasetError(
            f"{folder} lacks {', '.join(missing)}; get them from the authors ({record}) with: "
            f"curl -L {record}/files/{title}.tar | tar x -C {data_dir}   or ask for the source 'generated'"
        )
    rows = _SEVERITIES * len(arrays.labels)
    files = {name: _open(folder / f"{name}.npy", (rows, *arrays.images.shape[1:])) for name in corruptions}
    _require_labels(folder / "labels.npy", arrays)

    def read(corruption: Corruption, severity: Severity, where: range) -> Images:
        first = (severity - 1) * len(arrays.labels)
        return np.array(files[corruption][first + where.start : first + where.stop : where.step])

    return Corrupted(title, (), read)


def _open(path: Path, shape: tuple[int, ...]) -> Images:
    found: Images = _load(path)
    if found.dtype != np.uint8 or found.shape != shape:
        raise DatasetError(
            f"{path} must be uint8 of shape {shape}, 5 severities of every test image, found {found.dtype} "
            f"{found.shape}; fetch it again, or mend the test set beside it"
        )
    return found


def _require_labels(path: Path, arrays: Arrays) -> None:
    expected = np.tile(arrays.labels, _SEVERITIES)
    found = _load(path)
    if found.shape != expected.shape:
        raise DatasetError(f"{path} must be {len(expected)} labels, found {found.shape}; fetch it again")
    if wrong := int((found != expected).sum()):
        raise DatasetError(
            f"{path} disagrees with the labels of the test set at {wrong} of {len(expected)} places: these are "
            "not the same images in the same order; fetch both again"
        )


def _load(path: Path) -> Any:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DatasetError(f"{path} is no .npy file, or damaged: {error}; fetch it again") from error


# --- generated --------------------------------------------------------------------------------------------

_PACKAGE = "imagecorruptions-imaug"
_LEAST_SIDE = 32
"""Pixels; the package refuses smaller images."""
_PIXELWISE: frozenset[Corruption] = frozenset(
    {"gaussian_noise", "shot_noise", "impulse_noise", "brightness", "contrast"}
)
"""What a pixel becomes depends on it and on the image's mean alone, so an image's size does not matter."""
_TAKES_SEED: frozenset[Corruption] = frozenset({"impulse_noise", "glass_blur"})
"""These have a generator of their own; the others draw from numpy's global one."""


def _generated(protocol: CorruptionProtocol, arrays: Arrays) -> Corrupted:
    height, width = arrays.images.shape[1:3]
    undefined = [name for name in protocol.corruptions if name not in _PIXELWISE]
    if min(height, width) < _LEAST_SIDE and undefined:
        raise DatasetError(
            f"{', '.join(undefined)} cannot be generated for images of {height} x {width} pixels: they need "
            f"{_LEAST_SIDE} x {_LEAST_SIDE}; ask for {', '.join(n for n in CORRUPTIONS if n in _PIXELWISE)} only"
        )
    try:
        import imagecorruptions
    except ImportError as error:
        raise DatasetError(
            f"generating corruptions needs the package {_PACKAGE} ({error}); install it with: "
            "pip install 'dkl-bench[corruptions]'"
        ) from error
    read = partial(_make_all, imagecorruptions.corrupt, arrays.images, protocol.seed)
    title = f"{_PACKAGE} {version(_PACKAGE)}"
    note = (
        f"the corrupted images were generated with {title}, whose strengths are made for ImageNet: accuracies are "
        "comparable with each other, not with those on published sets such as CIFAR-10-C"
    )
    return Corrupted(title, (note,), read)


def _make_all(
    corrupt: Callable[..., Images],
    images: Images,
    seed: int,
    corruption: Corruption,
    severity: Severity,
    where: range,
) -> Images:
    made = np.empty((len(where), *images.shape[1:]), np.uint8)
    for row, image in enumerate(where):
        key = np.random.SeedSequence((seed, image, CORRUPTIONS.index(corruption), severity))
        with _global_random(int(key.generate_state(1)[0])) as number:
            made[row] = _make(corrupt, images[image], corruption, severity, number)
    return made


def _make(
    corrupt: Callable[..., Images], image: Images, corruption: Corruption, severity: Severity, seed: int
) -> Images:
    """One image (H, W, C). A small one is tiled up to the size that the package takes, and cut out again.

    A grey image becomes three equal channels there, which noise then makes different; the first one is taken.
    """
    height, width, channels = image.shape
    tiles = (-(-_LEAST_SIDE // height), -(-_LEAST_SIDE // width), 1) if min(height, width) < _LEAST_SIDE else (1,)
    coloured = np.ascontiguousarray(np.broadcast_to(image, (height, width, 3)))
    own = {"seed": seed} if corruption in _TAKES_SEED else {}
    made = corrupt(np.tile(coloured, tiles), corruption_name=corruption, severity=severity, **own)
    return made[:height, :width, :channels]


@contextmanager
def _global_random(seed: int) -> Iterator[int]:
    """Inside, numpy's and Python's global generators start from `seed`; afterwards they are as before."""
    python, legacy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield seed
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
