"""Evidence for pages: the small arrays of a stored file, and single images, without the rest. No torch here.

A file of evidence can be gigabytes, nearly all of them images. Its header says where everything lies, so that the
verdicts cost some hundred kilobytes, and an image costs its own bytes, from a folder or a bucket alike.

Legend: N images of the evaluation, C channels, H, W pixels.
"""

import json
from collections import OrderedDict
from dataclasses import dataclass, replace
from math import prod
from threading import Lock
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from dkl.evidence import About, EvidenceError, standing_at
from service.artifacts import MissingFileError, Store

_LONGEST_HEADER = 2**20
"""Bytes; the recipe in it is the longest part, and a request's body may not be longer either."""
_MOST_IMAGES = 2**20
"""Their verdicts are 30 MB."""
_MOST_PIXELS = 2**24
_MEMORY_BYTES = 128 * 2**20
_DTYPES: dict[str, Any] = {
    "BOOL": np.uint8, "U8": np.uint8, "I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64,
    "F32": np.float32, "F64": np.float64,
}  # fmt: skip
_PER_IMAGE = {"images": "I64", "labels": "I64", "clean_correct": "BOOL", "broken_at": "I8", "stage": "I16"}
_PREDICTED = {"predicted": "I32", "predicted_adv": "I32"}
_PICTURES = {"rows8": ("x8", "U8"), "rows32": ("x32", "F32"), "rows_clean": ("x_clean", "U8")}
"""Per array of row numbers: the images that they belong to, and their type."""


class _Place(NamedTuple):
    """Where one array lies in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    """First byte, counted from the beginning of the file."""

    def bytes_of(self, first: int, end: int) -> tuple[int, int]:
        """Where the elements `first` to `end` of its first axis begin and end."""
        each = prod(self.shape[1:]) * np.dtype(_DTYPES[self.dtype]).itemsize
        return self.begin + first * each, self.begin + end * each


_Places = dict[str, _Place]


@dataclass(frozen=True, eq=False)
class Exhibits:
    """What a stored file of evidence shows. Arrays with an N have one entry per image, see dkl.evidence.Evidence.

    A row is a position in these arrays, from 0 to N - 1. EvidenceError or StoreError where one cannot be read.
    """

    about: About
    images: NDArray[np.int64]
    """(N,): positions in the data set's test split, ascending."""
    labels: NDArray[np.int64]
    """(N,)"""
    clean_correct: NDArray[np.bool_]
    """(N,)"""
    radii: NDArray[np.float64]
    """Of the recipe, in pixels, ascending."""
    broken_at: NDArray[np.int8]
    """(N,): index of the smallest radius at which the image was broken, or -1."""
    stage: NDArray[np.int16]
    """(N,): number of the stage in about.stages that broke it, or -1."""
    predicted: NDArray[np.int32] | None
    """(N,): class predicted on the clean image, -1 where the logits were not finite; None in format 1."""
    predicted_adv: NDArray[np.int32] | None
    """(N,): class predicted on the stored adversarial image, -1 where there is none; None in format 1."""
    rows_clean: NDArray[np.int32]
    """Rows whose clean image is stored, ascending; none in format 1."""
    rows8: NDArray[np.int32]
    """Rows whose adversarial image is stored in 8 bits, ascending."""
    rows32: NDArray[np.int32]
    """Rows whose adversarial image is stored in float32, ascending."""
    sha256: str
    _places: _Places
    _store: Store

    def standing(self, radius: int) -> NDArray[np.bool_]:
        """(N,): classified correctly, and not broken at any radius up to the one with this index."""
        return standing_at(radius, self.clean_correct, self.broken_at)

    def has_clean(self, row: int) -> bool:
        return _position(self.rows_clean, row) is not None

    def has_adversarial(self, row: int) -> bool:
        return _position(self.rows8, row) is not None or _position(self.rows32, row) is not None

    def clean(self, row: int) -> NDArray[np.uint8] | None:
        """(C, H, W) in 255ths; None where it is not stored."""
        return cast("NDArray[np.uint8] | None", self._image("rows_clean", row))

    def adversarial(self, row: int) -> NDArray[np.uint8] | NDArray[np.float32] | None:
        """(C, H, W), uint8 in 255ths or float32 in [0, 1]; None where there is none."""
        in_8_bits = self._image("rows8", row)
        return self._image("rows32", row) if in_8_bits is None else in_8_bits

    def _image(self, rows: str, row: int) -> NDArray[Any] | None:
        position = _position(getattr(self, rows), row)
        if position is None:
            return None
        found: NDArray[Any] = _read(
            self._store, self.sha256, self._places[_PICTURES[rows][0]], position, position + 1
        )[0]
        return found


def _position(rows: NDArray[np.int32], row: int) -> int | None:
    at = int(np.searchsorted(rows, row))
    return at if at < len(rows) and rows[at] == row else None


# --- opening ----------------------------------------------------------------------------------------------


def open_exhibits(store: Store, sha256: str) -> Exhibits | None:
    """The evidence with this content; None where it is not stored (any more).

    EvidenceError where the file is damaged or too large to show, StoreError where the store does not answer. What
    was opened lately costs one look into the store.
    """
    stored = store.stat(sha256)
    if stored is None:
        return None
    known = _memory.get(sha256)
    try:
        exhibits = known or _open(store, sha256, stored.size)
    except MissingFileError:  # freed just now
        return None
    if known is None:
        _memory.keep(exhibits)
    return replace(exhibits, _store=store)


def _open(store: Store, sha256: str, size: int) -> Exhibits:
    about, places = _header(store, sha256, size)
    _require_layout(about, places)
    tables = {
        name: _read(store, sha256, place, 0, place.shape[0])
        for name, place in places.items()
        if name in _PER_IMAGE or name in _PREDICTED or name in _PICTURES or name == "radii"
    }
    _require_sense(about, tables)
    return Exhibits(
        about=about,
        images=tables["images"],
        labels=tables["labels"],
        clean_correct=tables["clean_correct"].view(np.bool_),
        radii=tables["radii"],
        broken_at=tables["broken_at"],
        stage=tables["stage"],
        predicted=tables.get("predicted"),
        predicted_adv=tables.get("predicted_adv"),
        rows_clean=tables.get("rows_clean", np.zeros(0, np.int32)),
        rows8=tables["rows8"],
        rows32=tables["rows32"],
        sha256=sha256,
        _places=places,
        _store=store,
    )


def _bytes(store: Store, sha256: str, start: int, stop: int) -> bytes:
    found = b"".join(store.read(sha256, start, stop))
    if len(found) != stop - start:
        raise EvidenceError(f"the evidence {sha256[:12]} ends early: bytes {start} to {stop} are not there")
    return found


def _read(store: Store, sha256: str, place: _Place, first: int, end: int) -> NDArray[Any]:
    begin, stop = place.bytes_of(first, end)
    found = _bytes(store, sha256, begin, stop) if stop > begin else b""
    return np.frombuffer(found, _DTYPES[place.dtype]).reshape(end - first, *place.shape[1:])


# --- what a file may say ----------------------------------------------------------------------------------


def _header(store: Store, sha256: str, size: int) -> tuple[About, _Places]:
    length = int.from_bytes(_bytes(store, sha256, 0, 8), "little") if size >= 8 else 0
    if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
        raise EvidenceError(f"the evidence {sha256[:12]} is not a safetensors file")
    try:
        document = json.loads(_bytes(store, sha256, 8, 8 + length))
        about = About.model_validate_json(document.pop("__metadata__")["dkl"])
        places = {str(name): _place(entry, 8 + length, size) for name, entry in document.items()}
    except (ValidationError, RecursionError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EvidenceError(f"the header of the evidence {sha256[:12]} is damaged") from error
    return about, places


def _place(entry: dict[str, Any], base: int, size: int) -> _Place:
    """One entry of the header; ValueError or what json's types raise where it is none."""
    shape = tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)) or base + end > size:
        raise ValueError("an array lies outside of the file")
    if prod(shape) * np.dtype(_DTYPES[entry["dtype"]]).itemsize != end - begin:
        raise ValueError("an array is longer or shorter than its shape")
    return _Place(entry["dtype"], shape, base + begin)


def _require_layout(about: About, places: _Places) -> None:
    """Raise unless the arrays that are shown are there, with types and shapes that fit together."""
    old = about.format == 1
    per_image = _PER_IMAGE if old else _PER_IMAGE | _PREDICTED
    pictures = {rows: images for rows, images in _PICTURES.items() if not (old and rows == "rows_clean")}
    needed = {*per_image, "radii", *pictures, *(name for name, _ in pictures.values())}
    if needed - places.keys():
        raise EvidenceError(f"the evidence lacks {', '.join(sorted(needed - places.keys()))}")
    count, shape = places["images"].shape[:1] or (0,), places["x8"].shape[1:]
    expected = {name: (dtype, count) for name, dtype in per_image.items()}
    expected["radii"] = ("F64", places["radii"].shape[:1] or (0,))
    for rows, (name, dtype) in pictures.items():
        some = places[rows].shape[:1] or (0,)
        expected |= {rows: ("I32", some), name: (dtype, (*some, *shape))}
    for name, wanted in expected.items():
        if places[name][:2] != wanted:
            raise EvidenceError("{} must be {} {}, found {} {}".format(name, *wanted, *places[name][:2]))
    if len(shape) != 3 or shape[0] not in {1, 3} or prod(shape) > _MOST_PIXELS or not 0 < count[0] <= _MOST_IMAGES:
        raise EvidenceError(f"a page cannot show {count[0]} images of shape {shape}")


def _require_sense(about: About, tables: dict[str, NDArray[Any]]) -> None:
    """Raise where following the numbers would lead out of the arrays, or to flags that are none."""
    count = len(tables["images"])
    if tuple(tables["radii"].tolist()) != about.question.radii():
        raise EvidenceError("the radii of the evidence are not those of its recipe")
    for name, end in {"broken_at": len(tables["radii"]), "stage": len(about.stages)}.items():
        if ((tables[name] < -1) | (tables[name] >= end)).any():
            raise EvidenceError(f"{name} of the evidence must be -1..{end - 1}")
    if ((tables["broken_at"] >= 0) & (tables["stage"] < 0)).any():
        raise EvidenceError("the evidence has broken images without the stage that broke them")
    if (tables["clean_correct"] > 1).any() or (tables["labels"] < 0).any() or (tables["images"] < 0).any():
        raise EvidenceError("the evidence has flags that are neither 0 nor 1, or negative labels or positions")
    for name in _PICTURES.keys() & tables.keys():
        rows = tables[name]
        if len(rows) and (rows[0] < 0 or rows[-1] >= count or (np.diff(rows) <= 0).any()):
            raise EvidenceError(f"{name} of the evidence must be ascending and below {count}")


# --- what was opened lately -------------------------------------------------------------------------------


class _Memory:
    """Exhibits by sha256; those that were not asked for longest go first. Content never changes under its name."""

    def __init__(self, most_bytes: int) -> None:
        self._lock = Lock()
        self._most = most_bytes
        self._known: OrderedDict[str, Exhibits] = OrderedDict()

    def get(self, sha256: str) -> Exhibits | None:
        with self._lock:
            if sha256 in self._known:
                self._known.move_to_end(sha256)
            return self._known.get(sha256)

    def keep(self, exhibits: Exhibits) -> None:
        with self._lock:
            self._known[exhibits.sha256] = exhibits
            while len(self._known) > 1 and sum(map(_size, self._known.values())) > self._most:
                self._known.popitem(last=False)


def _size(exhibits: Exhibits) -> int:
    arrays = [value for value in vars(exhibits).values() if isinstance(value, np.ndarray)]
    return sum(array.nbytes for array in arrays)


_memory = _Memory(_MEMORY_BYTES)
