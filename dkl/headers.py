"""The table of contents of a safetensors file, read by our own code and believed in nothing. No torch here.

A file is: the header's length (8 bytes, little-endian), the header (a JSON object: per tensor its type, shape and
place), the tensors one after the other without a gap. Whoever made it may have lied anywhere, so every number is
compared with what the file really holds, and nothing is allocated that the file is not long enough for.
"""

import json
import os
from math import prod
from typing import Any, BinaryIO, NamedTuple

LONGEST = 16 * 2**20
"""Bytes of a header; a network of a thousand layers needs some hundred thousand."""
MOST_TENSORS = 20_000
MOST_DIMENSIONS = 8
LONGEST_NAME = 300
ITEM_SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes per element of the types that weights have."""


class HeaderError(ValueError):
    """The file is not what its header says, or has none; the message goes on from "the file is no ...: "."""


class Entry(NamedTuple):
    dtype: str
    """A key of ITEM_SIZES."""
    shape: tuple[int, ...]


class Header(NamedTuple):
    entries: dict[str, Entry]
    metadata: dict[str, str]
    size: int
    """Bytes of all tensors together."""


def read_header(file: BinaryIO) -> Header:
    """The header of the safetensors file that is open at its beginning; HeaderError where anything is odd."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8:
        raise HeaderError(f"it has {size} bytes, too few for a header")
    if not 2 <= length <= LONGEST:
        raise HeaderError(f"its header claims to have {length} bytes; one has 2 to {LONGEST}")
    if length > size - 8:
        raise HeaderError(f"its header claims to have {length} bytes, but only {size - 8} follow: it is cut off")
    document = _document(file.read(length))
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise HeaderError("its __metadata__ must be an object of strings")
    if not document:
        raise HeaderError("it holds no tensors")
    entries, places = {}, []
    for name, value in document.items():
        entries[name], begin, end = _entry(name, value)
        places.append((begin, end, name))
    total = _end_without_gaps(places)
    if total != size - 8 - length:
        raise HeaderError(
            f"its tensors need {total} bytes, {size - 8 - length} are there: it is cut off or has something added"
        )
    return Header(entries, metadata, total)


def _document(text: bytes) -> dict[str, Any]:
    """The header as JSON; its size in memory is bounded before it is parsed."""
    if not text.startswith(b"{"):
        raise HeaderError("its header does not begin with '{'")
    if text.count(b"{") > MOST_TENSORS + 2 or text.count(b"[") > 2 * MOST_TENSORS:
        raise HeaderError(f"its header lists more than {MOST_TENSORS} tensors")
    if text.count(b",") > (MOST_DIMENSIONS + 4) * MOST_TENSORS:
        raise HeaderError("its header has more numbers than tensors could have dimensions")
    try:
        document = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except HeaderError:
        raise
    except RecursionError:
        raise HeaderError("its header is nested deeper than any header is") from None
    except ValueError:  # not JSON, not UTF-8, or a number of thousands of digits
        raise HeaderError("its header is not JSON") from None
    if not isinstance(document, dict):
        raise HeaderError("its header is not a JSON object")
    return document


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise HeaderError(f"its header names {_short(twice)} twice")
    return found


def _no_constant(text: str) -> None:
    raise HeaderError(f"its header contains {text}, which is not JSON")


def _entry(name: str, value: Any) -> tuple[Entry, int, int]:
    """Type and shape of one tensor, and where its bytes begin and end."""
    if len(name) > LONGEST_NAME or not name.isprintable():
        raise HeaderError(f"it has a tensor with an impossible name, {_short(name)}")
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise HeaderError(f"its entry {name} must have dtype, shape and data_offsets, and nothing else")
    dtype, shape, place = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        raise HeaderError(f"{name} is of type {_short(dtype)}; weights are of {', '.join(ITEM_SIZES)}")
    if not _are_counts(shape) or len(shape) > MOST_DIMENSIONS:
        raise HeaderError(
            f"the shape of {name} must be up to {MOST_DIMENSIONS} whole numbers, found {_short(shape)}"
        )
    if not _are_counts(place) or len(place) != 2 or place[0] > place[1]:
        raise HeaderError(f"the data_offsets of {name} must be where it begins and ends, found {_short(place)}")
    needed = prod(shape) * ITEM_SIZES[dtype]
    if needed != place[1] - place[0]:
        raise HeaderError(f"{name} of shape {_short(shape)} needs {needed} bytes, and has {place[1] - place[0]}")
    return Entry(dtype, tuple(shape)), place[0], place[1]


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _end_without_gaps(places: list[tuple[int, int, str]]) -> int:
    """Where the last tensor ends, if they lie one after the other from 0 on."""
    expected = 0
    for begin, end, name in sorted(places):
        if begin != expected:
            what = "overlaps with the one before" if begin < expected else "leaves a gap before it"
            raise HeaderError(f"{name} begins at byte {begin}, expected {expected}: it {what}")
        expected = end
    return expected


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
