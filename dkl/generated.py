"""Generated images beside the real ones, as in arXiv:2302.04638: millions of them, memory-mapped.

`FILE.npz` (uncompressed, as `numpy.savez` writes it) or the unpacked folder `FILE/` with image.npy and label.npy;
the folder goes first. Only the rows that a batch asks for are read; of the labels there is a copy in memory.
"""

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dkl.ahead import Ahead
from dkl.datasets import Arrays, DatasetError
from dkl.draws import Draw, generator

# --- the file ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stored:
    """An array in .npy form within a file: where its first number is, and what its header says."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool

    def map(self) -> NDArray[Any]:
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape, "F" if self.fortran else "C")


def open_generated(data_dir: Path, file: str, *, real: Arrays) -> Arrays:
    """The images called `file` as Arrays whose images are memory-mapped; none of them is read.

    Raises DatasetError where they are missing, damaged, compressed, or unlike the `real` ones in size or labels.
    """
    folder, packed = data_dir / file, data_dir / f"{file}.npz"
    if folder.is_dir():
        image, label = (_in_folder(folder / f"{name}.npy") for name in ("image", "label"))
    elif packed.exists():
        image, label = _in_zip(packed, folder)
    else:
        raise DatasetError(
            f"neither {packed} nor {folder}/ exists; put the generated images there, with arrays image (uint8 "
            "N,H,W,C) and label"
        )
    _require_form(image, label, real)
    labels = np.array(label.map())
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= real.classes:
        raise DatasetError(f"labels in {label.path} must be 0..{real.classes - 1}, found {lowest}..{highest}")
    return Arrays(image.map(), labels.astype(np.int64), real.classes)


def _require_form(image: _Stored, label: _Stored, real: Arrays) -> None:
    size = real.images.shape[1:]
    if image.dtype != np.uint8 or len(image.shape) != 4 or image.shape[1:] != size:
        raise DatasetError(
            f"image in {image.path} must be uint8 of shape (N, {', '.join(map(str, size))}) like the real images, "
            f"found {image.dtype} {image.shape}"
        )
    if label.shape != image.shape[:1] or not np.issubdtype(label.dtype, np.integer):
        raise DatasetError(
            f"label in {label.path} must be {image.shape[0]} integers, found {label.dtype} {label.shape}"
        )
    if image.shape[0] == 0:
        raise DatasetError(f"{image.path} holds no images")


def _in_folder(path: Path) -> _Stored:
    try:
        with path.open("rb") as file:
            return _header(path, file, size=path.stat().st_size)
    except OSError as error:
        raise DatasetError(
            f"cannot read {path} ({error.strerror}); the folder needs image.npy and label.npy"
        ) from error


def _in_zip(path: Path, folder: Path) -> tuple[_Stored, _Stored]:
    """The arrays image and label. A member of a zip that is not compressed lies there as it is, in one piece."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename: member for member in archive.infolist()}
    except (zipfile.BadZipFile, OSError) as error:
        raise DatasetError(f"{path} is no .npz or is truncated ({error}); copy or download it again") from error
    if missing := {"image.npy", "label.npy"} - members.keys():
        raise DatasetError(
            f"{path} must have the arrays image and label, found {', '.join(sorted(members)) or 'none'}; "
            f"{' and '.join(sorted(missing))} is missing"
        )
    wanted = members["image.npy"], members["label.npy"]
    if any(member.compress_type != zipfile.ZIP_STORED for member in wanted):
        raise DatasetError(
            f"{path} is compressed and cannot be memory-mapped; unpack it with: "
            f"python -m zipfile -e {path} {folder}/"
        )
    with path.open("rb") as file:
        image, label = (_member(path, file, member) for member in wanted)
    return image, label


def _member(path: Path, file: BinaryIO, member: zipfile.ZipInfo) -> _Stored:
    """A member's bytes come after a header of 30 bytes, its name and an extra field, whose lengths that tells."""
    file.seek(member.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise DatasetError(f"{path} is damaged where {member.filename} should begin; copy or download it again")
    file.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), 1)
    return _header(path, file, size=member.file_size)


def _header(path: Path, file: BinaryIO, *, size: int) -> _Stored:
    """The array in .npy form that begins where `file` stands and is `size` bytes long, header included."""
    start = file.tell()
    try:
        major, _ = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
    except ValueError as error:
        raise DatasetError(f"{path} does not hold arrays in .npy form: {error}") from error
    stored = _Stored(path, file.tell(), shape, dtype, fortran)
    expected = stored.offset - start + math.prod(shape) * dtype.itemsize
    if size != expected:
        raise DatasetError(
            f"an array of {path} must be {expected} bytes long by its header, found {size}; it is truncated, copy "
            "or download it again"
        )
    return stored


# --- its rows ---------------------------------------------------------------------------------------------


class GeneratedRows:
    """`count` generated images for every batch, drawn uniformly with replacement and read in the background."""

    def __init__(self, arrays: Arrays, *, count: int, batches: int, seed: int, device: str | torch.device) -> None:
        self._arrays = arrays
        self._count = count
        self._seed = seed
        self._device = device
        self._ahead = Ahead(self._read, batches=batches)

    def rows(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """Images as uint8 (B, C, H, W) and labels as int64 (B,), on the device, in the order of the file."""
        images_BHWC, y_B = self._ahead.get(epoch, index)
        return images_BHWC.to(self._device).permute(0, 3, 1, 2), y_B.to(self._device)

    def _read(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        random = generator("cpu", Draw.GENERATED, self._seed, epoch, index)
        drawn = torch.randint(len(self._arrays.labels), (self._count,), generator=random)
        rows = drawn.sort().values.numpy()  # a disk is read fastest from front to back
        images = np.ascontiguousarray(self._arrays.images[rows])
        return torch.from_numpy(np.asarray(images)), torch.from_numpy(self._arrays.labels[rows])
