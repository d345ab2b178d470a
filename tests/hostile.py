"""Files that somebody might upload to do harm, or by mistake; each with what has to be said about it.

The network they claim to be of is WRN-10-1 for CIFAR-10.
"""

import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from dkl.architectures import WideResNet
from dkl.models import build

NETWORK = WideResNet(depth=10, width=1)
Make = Callable[[Path, str], None]
"""(file to write, file that shall never come to be)"""
AT_FIRST: dict[str, tuple[Make, str]] = {}
"""Refused by their tables of contents, without torch: name, how to make it, words of the sentence."""


class Calls:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self._reduced = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self._reduced


def state() -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return dict(build(NETWORK, channels=3, classes=10).state_dict())


def bytes_of(content: bytes) -> Make:
    return lambda path, _: path.write_bytes(content) and None


# --- by mistake -------------------------------------------------------------------------------------------


def _tar(path: Path, _: str) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("model.pt"), io.BytesIO())


def _numpy_objects(path: Path, canary: str) -> None:
    np.save(path.open("wb"), np.array([Calls(open, canary, "w")], dtype=object), allow_pickle=True)


AT_FIRST |= {
    "empty": (bytes_of(b""), "the upload is empty"),
    "a web page": (
        bytes_of(b"<!DOCTYPE html><html>Quota exceeded"),
        "a web page: a sharing site answered with a page",
    ),
    "a web page after blanks": (bytes_of(b"\xef\xbb\xbf\n\n <HTML><head>"), "a web page"),
    "text": (bytes_of(b"epoch 1: loss 2.3\nepoch 2: loss 2.1\n"), "is text, not weights"),
    "an error as JSON": (bytes_of(b'{"detail": "Not Found"}'), "is text, not weights"),
    "a Git LFS pointer": (bytes_of(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "git lfs pull"),
    "gzip": (bytes_of(gzip.compress(bytes(10**6))), "compressed with gzip; unpack it"),
    "bzip2": (bytes_of(b"BZh91AY&SY" + bytes(100)), "compressed with bzip2"),
    "xz": (bytes_of(b"\xfd7zXZ\x00" + bytes(100)), "compressed with xz"),
    "zstd": (bytes_of(b"\x28\xb5\x2f\xfd" + bytes(100)), "compressed with zstd"),
    "7z": (bytes_of(b"7z\xbc\xaf\x27\x1c" + bytes(100)), "a 7z archive"),
    "tar": (_tar, "a tar archive; unpack it"),
    "GGUF": (bytes_of(b"GGUF\x03\0\0\0" + bytes(100)), "a GGUF file"),
    "HDF5": (bytes_of(b"\x89HDF\r\n\x1a\n" + bytes(100)), "an HDF5 file"),
    "ONNX": (bytes_of(b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:\xff\x01"), "an ONNX model"),
    "TensorFlow": (bytes_of(b"\x08\x01\x12\xff\x10\x0a\x05serve"), "a TensorFlow model"),
    "TensorFlow Lite": (bytes_of(b"\x1c\0\0\0TFL3" + bytes(100)), "a TensorFlow Lite model"),
    "NumPy objects": (_numpy_objects, "a NumPy array"),
    "a program": (bytes_of(b"\x7fELF\x02\x01\x01" + bytes(100)), "a program"),
    "noise": (bytes_of(bytes(range(200, 256)) * 20), "begins with the bytes c8 c9 ca cb cc cd ce cf"),
    "zeros": (bytes_of(bytes(1000)), "begins with the bytes 00 00 00 00"),
}

# --- no files ---------------------------------------------------------------------------------------------


def _linked(path: Path, _: str) -> None:
    path.symlink_to("/etc/passwd")


def _folder(path: Path, _: str) -> None:
    path.mkdir()


def _pipe(path: Path, _: str) -> None:
    os.mkfifo(path)


def _device(path: Path, _: str) -> None:
    path.symlink_to("/dev/zero")


def _absent(path: Path, _: str) -> None:
    pass


AT_FIRST |= {
    "a link": (_linked, "the upload is a link; upload the file itself"),
    "a link to a device": (_device, "the upload is a link"),
    "a folder": (_folder, "no plain file but a folder"),
    "a pipe": (_pipe, "no plain file but a folder, a pipe"),
    "nothing": (_absent, "no longer stored here"),
}

# --- safetensors ------------------------------------------------------------------------------------------


def _table(text: bytes | str, data: int = 0, length: int | None = None) -> Make:
    """A header of this text, which claims `length` bytes, before so many bytes of data."""
    header = text.encode() if isinstance(text, str) else text
    claimed = len(header) if length is None else length
    return bytes_of(claimed.to_bytes(8, "little") + header + bytes(data))


def _entries(*entries: object, data: int = 8, **changes: object) -> Make:
    """Tensors a, b, ...: each a pair of shape and data_offsets, or a whole entry."""
    table: dict[str, object] = {}
    for name, entry in zip("abcdefg", entries, strict=False):
        shape, place = entry if isinstance(entry, tuple) else (None, None)
        table[name] = (
            entry if shape is None else {"dtype": "F32", "shape": shape, "data_offsets": place, **changes}
        )
    return _table(json.dumps(table), data)


def _cut(keep: float | int) -> Make:
    """Good weights, of which the rest did not arrive."""

    def make(path: Path, _: str) -> None:
        content = safetensors.torch.save(state())
        path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])

    return make


def _longer(path: Path, _: str) -> None:
    path.write_bytes(safetensors.torch.save(state()) + b"\0" * 100)


def _huge_header(path: Path, _: str) -> None:
    with path.open("wb") as file:
        file.write((10**8).to_bytes(8, "little") + b"{")
        file.truncate(10**8 + 8)


_MANY = ",".join(f'"t{n}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for n in range(30_000))
_ONE = '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'

AT_FIRST |= {
    "a header of 2**63 bytes": (_table("{", length=2**63), "its header claims to have 9223372036854775808 bytes"),
    "a header of no bytes": (_table("{}", length=0), "its header claims to have 0 bytes"),
    "a header longer than the file": (_table("{}", length=1000), "only 2 follow: it is cut off"),
    "a header of 100 MB": (_huge_header, "its header claims to have 100000000 bytes"),
    "cut off after 4 bytes": (_cut(4), "begins with the bytes"),
    "cut off after 9 bytes": (_cut(9), "it is cut off"),
    "cut off in the header": (_cut(1000), "it is cut off"),
    "cut off in the middle": (_cut(0.5), "it is cut off or has something added"),
    "cut off at the end": (_cut(0.999), "it is cut off or has something added"),
    "something added": (_longer, "it is cut off or has something added"),
    "overlapping tensors": (_entries(([1], [0, 4]), ([1], [2, 6])), "b begins at byte 2, expected 4: it overlaps"),
    "the same bytes twice": (
        _entries(([1], [0, 4]), ([1], [0, 4])),
        "b begins at byte 0, expected 4: it overlaps",
    ),
    "a gap": (_entries(([1], [0, 4]), ([1], [8, 12]), data=12), "expected 4: it leaves a gap"),
    "backwards": (_entries(([1], [4, 0])), "must be where it begins and ends"),
    "a negative shape": (_entries(([-1, -1], [0, 4])), "must be up to 8 whole numbers"),
    "a negative offset": (_entries(([1], [-4, 0])), "must be where it begins and ends"),
    "a huge shape": (_entries(([2**62, 2**62], [0, 8])), "needs 850705917302346"),
    "a shape that wraps around": (_entries(([2**32, 2**32], [0, 0]), data=0), "needs 73786976294838206464 bytes"),
    "a fractional shape": (_entries(([1.5], [0, 4])), "must be up to 8 whole numbers"),
    "a shape of truths": (_entries(([True], [0, 4])), "must be up to 8 whole numbers"),
    "a hundred dimensions": (_entries(([1] * 100, [0, 4])), "must be up to 8 whole numbers"),
    "another size than the shape's": (_entries(([3], [0, 8])), "needs 12 bytes, and has 8"),
    "an unknown type": (_entries(([1], [0, 4]), dtype="F8_E4M3"), "a is of type 'F8_E4M3'; weights are of F64"),
    "a type that is no word": (_entries(([1], [0, 4]), dtype=["F32"]), "is of type"),
    "a field too many": (_entries(([1], [0, 4]), code="import os"), "dtype, shape and data_offsets, and nothing"),
    "no entry": (_entries("F32"), "its entry a must have dtype"),
    "the same name twice": (_table(f"{{{_ONE},{_ONE}}}", 8), "its header names 'a' twice"),
    "nested deeply": (_table('{"a":' * 10_000 + "1" + "}" * 10_000), "nested deeper than any header"),
    "lists nested deeply": (_table('{"a":' + "[" * 30_000 + "]" * 30_000 + "}"), "nested deeper than any header"),
    "a million lists": (_table('{"a":[' + "[]," * 10**6 + "[]]}"), "lists more than 20000 tensors"),
    "a million numbers": (
        _table('{"a":[' + "1," * 10**6 + "1]}"),
        "more numbers than tensors could have dimensions",
    ),
    "thirty thousand tensors of nothing": (_table(f"{{{_MANY}}}"), "lists more than 20000 tensors"),
    "a number of many digits": (_table('{"a":' + "9" * 10_000 + "}"), "its header is not JSON"),
    "not a number": (_table('{"a":NaN}'), "its header contains NaN"),
    "no JSON": (_table("{oh"), "its header is not JSON"),
    "no text": (_table(b'{"\xff\xfe":1}'), "its header is not JSON"),
    "metadata that are no words": (_table('{"__metadata__":{"dkl":{}}}'), "its __metadata__ must be an object of"),
    "no tensors": (_table('{"__metadata__":{}}'), "it holds no tensors"),
    "a name that moves the cursor": (_table(_ONE.replace("a", "\\u001b[2J", 1).join("{}")), "an impossible name"),
    "a name of a megabyte": (_table(_ONE.replace("a", "a" * 10**6, 1).join("{}"), 4), "an impossible name"),
}
