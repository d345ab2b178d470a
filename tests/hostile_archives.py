"""Archives and pickles that somebody might upload to do harm; and what only torch can find fault with."""

import os
import pickle
import stat
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from hostile import Calls, Make, state

AT_FIRST: dict[str, tuple[Make, str]] = {}
"""Refused by their tables of contents, without torch: name, how to make it, words of the sentence."""
BY_TORCH: dict[str, tuple[Make, str]] = {}
"""Refused later."""


# --- pickles ----------------------------------------------------------------------------------------------


class _Sets:
    """Is made by a harmless call and then given a state, which runs __setstate__."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (subprocess.Popen, (["true"],), {"args": 1})


def _saved(content: Callable[[str], object]) -> Make:
    """What torch.save makes of something."""
    return lambda path, canary: torch.save(content(canary), path)


def archive(path: Path, pickled: bytes, how: Callable[[zipfile.ZipFile], None] = lambda _: None) -> None:
    """An archive such as torch.save writes, with this pickle, and what else `how` adds."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        file.writestr("a/data.pkl", pickled)
        file.writestr("a/byteorder", b"little")
        file.writestr("a/version", b"3\n")
        how(file)


def _pickled(make: Callable[[str], bytes]) -> Make:
    return lambda path, canary: archive(path, make(canary))


def _named(module: str, name: str) -> Callable[[str], bytes]:
    """The pickle of module.name(file, "w")."""
    return lambda canary: (
        b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"X" + struct.pack("<I", len(canary)) + canary.encode()
        + b"X\x01\0\0\0w\x86R."
    )  # fmt: skip


def _inst(canary: str) -> bytes:
    return b"(S'" + canary.encode() + b"'\nS'w'\ni__builtin__\nopen\n."


def _extension(_: str) -> bytes:
    return b"\x80\x02\x82\x4d."  # number 77 of a registry that the reading process may have


def _run(canary: str) -> str:
    return f"touch {canary}"


MORE = "holds more than weights "
AT_FIRST |= {
    "os.system": (_saved(lambda canary: {"w": Calls(os.system, _run(canary))}), MORE + r"\(posix.system\)"),
    "open": (_saved(lambda canary: {"w": Calls(open, canary, "w")}), MORE + r"\(io.open\)"),
    "eval": (_saved(lambda canary: Calls(eval, f"open({canary!r}, 'w')")), MORE + r"\(__builtin__.eval\)"),
    "exec": (_saved(lambda canary: [Calls(exec, f"open({canary!r}, 'w')")]), MORE + r"\(__builtin__.exec\)"),
    "subprocess": (
        _saved(lambda canary: Calls(subprocess.Popen, ["touch", canary])),
        MORE + r"\(commands.Popen",
    ),
    "Path.touch": (_saved(lambda canary: Calls(Path.touch, Path(canary))), MORE + r"\(__builtin__.getattr\)"),
    "a state that is set": (_saved(lambda _: _Sets()), MORE + r"\(commands.Popen\)"),
    "code among good weights": (
        _saved(lambda canary: {"state_dict": state(), "optimizer": [{"x": (1, Calls(os.mkdir, canary))}]}),
        MORE + r"\(posix.mkdir\)",
    ),
    "code as a key": (_saved(lambda canary: {("w", Calls(os.mkdir, canary)): 1}), MORE + r"\(posix.mkdir\)"),
    "code within code": (
        _saved(lambda canary: [{"a": [({"b": Calls(os.mkdir, canary)},)]}]),
        MORE + r"\(posix.mkdir\)",
    ),
    "importlib": (_pickled(_named("importlib", "import_module")), MORE + r"\(importlib.import_module\)"),
    "a name that hides itself": (_pickled(_named("os\x1b[2J", "system")), MORE + r"\(os\?\[2J.system\)"),
    "a newer pickle": (
        _pickled(lambda canary: pickle.dumps(Calls(open, canary, "w"), protocol=4)),
        MORE + r"\(STACK_GLOBAL in",
    ),
    "INST": (_pickled(_inst), MORE + r"\(INST in its pickle\)"),
    "an extension": (_pickled(_extension), MORE + r"\(EXT1 in its pickle\)"),
    "an endless pickle": (_pickled(lambda _: b"\x80\x02" + b"]" * 10**6), "its pickle is no pickle"),
    "a pickle that is cut off": (_pickled(lambda _: b"\x80\x02X\xff\xff\xff\xffabc"), "its pickle is no pickle"),
    "no pickle": (_pickled(lambda _: b"<html>"), "its pickle is no pickle"),
    "a bare pickle": (
        lambda path, canary: path.write_bytes(pickle.dumps(Calls(open, canary, "w"), 2)) and None,
        "a bare pickle, as",
    ),
    "a bare new pickle": (
        lambda path, canary: path.write_bytes(pickle.dumps(Calls(open, canary, "w"), 5)) and None,
        "a bare pickle, as",
    ),
    "torch's old format": (
        lambda path, canary: torch.save(
            {"w": Calls(open, canary, "w")}, path, _use_new_zipfile_serialization=False
        ),
        r"a bare pickle, as torch.save wrote before 1.6.*dklbench convert",
    ),
    "TorchScript": (
        lambda path, _: archive(path, b"\x80\x02}.", lambda file: file.writestr("a/constants.pkl", b"\x80\x02).")),
        "a TorchScript program, and no code is run here",
    ),
}

# --- archives ---------------------------------------------------------------------------------------------

_HARMLESS = pickle.dumps({}, protocol=2)


def _with(how: Callable[[zipfile.ZipFile], None]) -> Make:
    return lambda path, _: archive(path, _HARMLESS, how)


def _edited(edit: Callable[[bytearray], bytes | None]) -> Make:
    """What torch.save wrote, changed."""

    def make(path: Path, _: str) -> None:
        torch.save(state(), path)
        content = bytearray(path.read_bytes())
        path.write_bytes(edit(content) or content)

    return make


def _entry(name: str, *, mode: int = 0o644, compress: int = zipfile.ZIP_STORED) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.external_attr, entry.compress_type = mode << 16, compress
    return entry


def _link(file: zipfile.ZipFile) -> None:
    file.writestr(_entry("a/data/0", mode=stat.S_IFLNK | 0o777), "/etc/passwd")


def _bomb(file: zipfile.ZipFile) -> None:
    file.writestr(_entry("a/data/0", compress=zipfile.ZIP_DEFLATED), bytes(10**8))


def _many(file: zipfile.ZipFile) -> None:
    for number in range(20_001):
        file.writestr(f"a/data/{number}", b"")


def _other(**files: bytes) -> Make:
    def make(path: Path, _: str) -> None:
        with zipfile.ZipFile(path, "w") as file:
            for name, content in files.items():
                file.writestr(name, content)

    return make


def _put(content: bytearray, offset: int, form: str, *numbers: int) -> None:
    struct.pack_into(form, content, len(content) + offset, *numbers)


def _shared(content: bytearray) -> None:
    """Let the directory's last file lie where its first one lies."""
    place = content.rindex(b"PK\x01\x02")
    content[place + 42 : place + 46] = bytes(4)


def _renamed(content: bytearray) -> None:
    """Call a file otherwise in its own header than in the directory."""
    place = content.index(b"/data.pkl")
    content[place : place + 9] = b"/data.pkx"


def _encrypted(content: bytearray) -> None:
    content[content.rindex(b"PK\x01\x02") + 8] |= 1


AT_FIRST |= {
    "a zip bomb": (_with(_bomb), "an archive with compressed files in it"),
    "a link in an archive": (_with(_link), "an archive with a link or folder in it"),
    "a folder in an archive": (_with(lambda file: file.writestr("a/b/", b"")), "a link or folder in it"),
    "a file above its folder": (
        _with(lambda file: file.writestr("a/../../x", b"")),
        "that torch.save did not write",
    ),
    "a file from the root": (
        _with(lambda file: file.writestr("/etc/passwd", b"")),
        "that torch.save did not write",
    ),
    "two of one name": (_with(lambda file: file.writestr("a/DATA.pkl", b"")), "it has two files of one name"),
    "twenty thousand files": (_with(_many), r"an archive of 2000\d files"),
    "a NumPy archive": (_other(**{"image.npy": b"", "label.npy": b""}), "a NumPy archive"),
    "a Keras model": (_other(**{"config.json": b"{}", "model.weights.h5": b""}), "a Keras model"),
    "a document": (_other(**{"word/document.xml": b"<x>"}), r"did not write \(it holds document.xml\)"),
    "a long list of tensors": (
        lambda path, _: archive(path, b"\x80\x02" + b"N0" * 3 * 2**20),
        "lists its tensors in 6291458 bytes",
    ),
    "an archive's first half": (_edited(lambda content: content[: len(content) // 2]), "its end is missing"),
    "an archive without its last byte": (_edited(lambda content: content[:-1]), "its end is missing"),
    "an archive and something behind it": (_edited(lambda content: content + b"evil"), "its end is missing"),
    "only an archive's end": (_edited(lambda content: b"PK\x05\x06" + bytes(18)), "an archive of 0 files"),
    "an archive of billions": (_edited(lambda c: _put(c, -98 + 24, "<2Q", 2**40, 2**40)), "itself in two ways"),
    "a directory elsewhere": (_edited(lambda c: _put(c, -98 + 48, "<Q", 0)), "itself in two ways"),
    "a directory of 2**60 bytes": (
        _edited(lambda c: _put(c, -98 + 40, "<Q", 2**60) or _put(c, -22 + 12, "<L", 2**32 - 1)),
        "listed in 1152921504606846976 bytes",
    ),
    "no 64-bit record": (_edited(lambda c: _put(c, -98, "<4s", b"evil")), "itself in two ways"),
    "an archive in parts": (
        _edited(lambda c: _put(c, -98 + 16, "<L", 1) or _put(c, -22 + 4, "<H", 1)),
        "it is in several parts",
    ),
    "two files in one place": (_edited(_shared), "its files overlap|in two ways"),
    "a file of two names": (_edited(_renamed), "it names a file in two ways"),
    "an encrypted archive": (_edited(_encrypted), "an encrypted archive"),
}

# --- what torch has to look at ----------------------------------------------------------------------------


def _kept(content: Callable[[], dict[str, torch.Tensor]]) -> Make:
    return lambda path, _: safetensors.torch.save_file(content(), path)


def _but(name: str, value: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
    """Good weights, and this one changed."""
    good = state()
    return {**good, name: value(good[name])}


def _sparse_file(path: Path, _: str) -> None:
    """20 GB of zeros, which take no place on the disk."""
    header = b'{"w":{"dtype":"F32","shape":[5000000000],"data_offsets":[0,20000000000]}}'
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 20 * 10**9)


def _larger_than_its_storage(path: Path, _: str) -> None:
    """A tensor of 64 GB that claims a storage of a few bytes."""
    torch.save({"w": torch.zeros(7, 11)}, path)
    with zipfile.ZipFile(path) as file:
        pickled = file.read(f"{path.stem}/data.pkl")
    huge = b"J" + struct.pack("<i", 2**17)
    archive(
        path,
        pickled.replace(b"K\x07K\x0b", huge + huge).replace(b"K\x0bK\x01", huge + b"K\x01"),
        lambda file: file.writestr("a/data/0", bytes(308)),
    )


def _storage_of_a_terabyte(path: Path, _: str) -> None:
    """A storage that claims 2**40 elements, and holds 77."""
    torch.save({"w": torch.zeros(7, 11)}, path)
    with zipfile.ZipFile(path) as file:
        pickled = file.read(f"{path.stem}/data.pkl")
    archive(
        path,
        pickled.replace(b"KM", b"\x8a\x06" + (2**40).to_bytes(6, "little")),
        lambda file: file.writestr("a/data/0", bytes(308)),
    )


def _everywhere_the_same(name: str, *shape: int) -> dict[str, torch.Tensor]:
    """A tensor of any size that is one number in the file."""
    return {**state(), name: torch.zeros(1).expand(*shape)}


def _laughs() -> dict[str, object]:
    content: object = torch.zeros(1)
    for _ in range(40):
        content = {"a": content, "b": content}  # as a tree 2**40 tensors
    return {"state_dict": content}


BY_TORCH |= {
    "20 GB of nothing": (_sparse_file, "the upload has 20000 MB, the weights of its network take 0.3 MB"),
    "NaN": (
        _kept(lambda: _but("fc.weight", lambda w: w * torch.nan)),
        "fc.weight in the upload has 640 of 640 values",
    ),
    "one infinity": (
        _saved(lambda _: _but("fc.bias", lambda w: w.index_fill(0, torch.tensor([3]), torch.inf))),
        "fc.bias in the upload has 1 of 10 values that are NaN or infinite",
    ),
    "too large for float32": (
        _saved(lambda _: _but("fc.bias", lambda w: w.double() + 1e300)),
        "fc.bias in the upload has 10 of 10 values that are too large for float32",
    ),
    "an infinite count": (_saved(lambda _: _but("bn1.num_batches_tracked", lambda w: w + torch.inf)), "infinite"),
    "another shape": (
        _kept(lambda: _but("conv1.weight", lambda w: w[:, :, :1].contiguous())),
        r"1 missing \(conv1.weight \(16, 3, 3, 3\).*unexpected \(conv1.weight \(16, 3, 1, 3\)",
    ),
    "a tensor too few": (
        _kept(lambda: {k: v for k, v in state().items() if k != "bn1.weight"}),
        r"1 missing \(bn1.weight \(64,\)",
    ),
    "a tensor too many": (
        _kept(lambda: {**state(), "extra.weight": torch.zeros(2)}),
        r"1 unexpected \(extra.weight",
    ),
    "other classes": (
        _kept(lambda: {**state(), "fc.weight": torch.zeros(100, 64), "fc.bias": torch.zeros(100)}),
        "tell 100 classes apart, cifar10 has 10",
    ),
    "whole numbers": (
        _kept(lambda: _but("fc.bias", lambda w: w.char())),
        r"unexpected \(fc.bias \(10,\) torch.int8",
    ),
    "complex numbers": (_saved(lambda _: _but("fc.bias", lambda w: w + 1j)), r"fc.bias \(10,\) torch.complex64"),
    "8-bit floats": (
        _saved(lambda _: _but("fc.bias", lambda w: w.to(torch.float8_e4m3fn))),
        r"torch.float8_e4m3fn",
    ),
    "quantised": (
        _saved(lambda _: _but("fc.bias", lambda w: torch.quantize_per_tensor(w, 1, 0, torch.qint8))),
        "fc.bias in the upload is a .* which holds no plain weights",
    ),
    "sparse": (
        _saved(lambda _: _but("fc.weight", lambda w: w.to_sparse())),
        "fc.weight in the upload is a torch.sparse_coo tensor",
    ),
    "on no device": (_saved(lambda _: _but("fc.weight", lambda w: w.to("meta"))), "is a meta tensor"),
    "a tensor without end": (_saved(lambda _: _everywhere_the_same("fc.weight", 10**6, 10**6)), "classes apart"),
    "constants without end": (
        _saved(lambda _: _everywhere_the_same("mean", 10**12) | {"std": torch.ones(1).expand(10**12)}),
        r"2 unexpected \(mean \(1000000000000,\)",
    ),
    "a tensor larger than its storage": (_larger_than_its_storage, "no file of weights, or damaged"),
    "a storage of a terabyte": (_storage_of_a_terabyte, "the upload"),
    "a billion laughs": (_saved(lambda _: _laughs()), "holds no state dict"),
    "no state dict": (_saved(lambda _: {"epoch": 3}), "holds no state dict"),
    "a list": (_saved(lambda _: [torch.zeros(1)]), "holds a list; expected a state dict"),
    "several": (
        _saved(lambda _: {"model": state(), "ema": state()}),
        "several state dicts; choose one with --entry",
    ),
    "a function of torch": (
        _pickled(_named("torch.serialization", "load")),
        MORE + r"\(torch.serialization.load\)",
    ),
    "torch.hub": (_pickled(_named("torch.hub", "load")), MORE + r"\(torch.hub.load\)"),
    "a function of numpy": (_pickled(_named("numpy", "fromfile")), MORE + r"\(numpy.fromfile\)"),
    "an array of objects": (_saved(lambda canary: {"w": np.array([Calls(open, canary, "w")], object)}), MORE),
}
