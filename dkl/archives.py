"""Zip archives as torch.save writes them, checked without torch: their directory, their records, their pickle.

Nothing is unpickled here, and nothing unpacked. An archive of another build is refused, because two programs that
read it may find different files in it.
"""

import stat
import struct
import zipfile
from pickletools import genops
from typing import BinaryIO

LARGEST_TABLE = 4 * 2**20
"""Bytes of an archive's directory, and of the pickle in it that lists the tensors."""
MOST_RECORDS = 20_000
_SATURATED = (0xFFFF,) * 4 + (0xFFFFFFFF,) * 2
"""In the 32-bit record these say: look at the 64-bit one."""
SAVE_STATE = "save its state dict alone: torch.save(model.state_dict(), FILE)"


class UploadError(ValueError):
    """What was uploaded is not taken; the message says what it is and what to do."""


def check_archive(file: BinaryIO, size: int) -> None:
    """UploadError unless the open file is an archive of tensors, with nothing behind its records and directory."""
    start = _directory_start(file, size)
    try:
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
            _check_records(file, records, start)
            table = next((r for r in records if r.filename.partition("/")[2] == "data.pkl"), None)
            if table is None or any(r.filename.partition("/")[2] == "constants.pkl" for r in records):
                raise UploadError(f"the upload is {_other_zip([r.filename for r in records])}")
            if table.file_size > LARGEST_TABLE:
                raise UploadError(
                    f"the upload lists its tensors in {table.file_size} bytes, up to {LARGEST_TABLE} are read; "
                    f"{SAVE_STATE}"
                )
            pickled = archive.read(table)
    except (zipfile.BadZipFile, struct.error, EOFError, OSError, ValueError, NotImplementedError) as error:
        if isinstance(error, UploadError):
            raise
        raise UploadError(_damaged(str(error))) from None
    _check_pickle(pickled)


def _damaged(what: str) -> str:
    return (
        f"the upload is a damaged archive ({what}), or not torch's; write it again with torch.save and upload that"
    )


def _directory_start(file: BinaryIO, size: int) -> int:
    """Where the archive's directory begins, once it is sure that it fills the file from there to its end.

    An archive ends with the directory, a record of 64-bit numbers about it, where that is, and one of 32-bit ones.
    """
    file.seek(max(0, size - 56 - 20 - 22))
    tail = file.read().rjust(98, b"\0")
    if tail[76:80] != b"PK\x05\x06" or tail[96:] != b"\0\0":
        raise UploadError(_damaged("its end is missing"))
    numbers, end = struct.unpack("<4H2L", tail[80:96]), size - 22
    if tail[56:60] == b"PK\x06\x07":
        end = size - 98
        larger = struct.unpack("<2L4Q", tail[16:56])
        agree = all(a in {b, most} for a, b, most in zip(numbers, larger, _SATURATED, strict=True))
        if tail[:4] != b"PK\x06\x06" or struct.unpack("<Q", tail[64:72]) != (end,) or not agree:
            raise UploadError(_damaged("it describes itself in two ways"))
        numbers = larger
    disk, first_disk, here, records, length, start = map(int, numbers)
    if disk or first_disk or here != records:
        raise UploadError(_damaged("it is in several parts"))
    if not 0 < records <= MOST_RECORDS or length > LARGEST_TABLE:
        raise UploadError(
            f"the upload is an archive of {records} files, listed in {length} bytes; one of weights has up to "
            f"{MOST_RECORDS}, in up to {LARGEST_TABLE}; {SAVE_STATE}"
        )
    if start + length != end:
        raise UploadError(_damaged("its directory is not where it should be"))
    return start


def _check_records(file: BinaryIO, records: list[zipfile.ZipInfo], directory: int) -> None:
    """The files of the archive: stored as they are, plain, under the names torch gives, one after the other."""
    roots = {record.filename.partition("/")[0] for record in records}
    if len({record.filename.casefold() for record in records}) < len(records):
        raise UploadError(_damaged("it has two files of one name"))
    place = 0
    for record in sorted(records, key=lambda record: record.header_offset):
        name = record.orig_filename
        if "/" not in name or len(roots) > 1 or ".." in name.split("/") or not name.isprintable():
            raise UploadError(f"the upload is {_other_zip([r.filename for r in records])}")
        if stat.S_ISLNK(record.external_attr >> 16) or record.is_dir():
            raise UploadError(f"the upload is an archive with a link or folder in it ({name[:60]}); {SAVE_STATE}")
        if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size:
            raise UploadError(
                "the upload is an archive with compressed files in it, which torch.save does not write; "
                f"{SAVE_STATE}"
            )
        if record.flag_bits & 0x2041:
            raise UploadError("the upload is an encrypted archive; upload the file of weights itself")
        place = _end_of(file, record, after=place)
    if place > directory:
        raise UploadError(_damaged("its files reach into its directory"))


def _end_of(file: BinaryIO, record: zipfile.ZipInfo, *, after: int) -> int:
    """Where the record ends, by its own header, which has to lie behind the record before and agree by name."""
    file.seek(record.header_offset)
    local = file.read(30)
    if record.header_offset < after or len(local) < 30 or local[:4] != b"PK\x03\x04":
        raise UploadError(_damaged("its files overlap"))
    name_length, extra_length = struct.unpack("<2H", local[26:30])
    if file.read(name_length) != record.orig_filename.encode():
        raise UploadError(_damaged("it names a file in two ways"))
    return record.header_offset + 30 + int(name_length + extra_length) + record.file_size


def _other_zip(names: list[str]) -> str:
    last = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in last:
        return f"a TorchScript program, and no code is run here; load it where it comes from and {SAVE_STATE}"
    if all(name.endswith(".npy") for name in last):
        return "a NumPy archive; upload the weights as safetensors"
    if "model.weights.h5" in last:
        return f"a Keras model; convert the weights to torch and {SAVE_STATE}"
    some = ", ".join(sorted(last))[:60]
    return f"a zip archive that torch.save did not write (it holds {some}); unpack it and upload the weights in it"


# --- the pickle in it -------------------------------------------------------------------------------------

_HARMLESS_PACKAGES = {"torch", "numpy"}
"""In these torch's own reader knows by name what makes tensors and numbers, and takes nothing else."""
_HARMLESS = {
    "collections OrderedDict",
    "collections Counter",
    "_codecs encode",
    "builtins set",
    "__builtin__ set",
    "argparse Namespace",
}
_FOREIGN_OPCODES = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID"}


def _check_pickle(pickled: bytes) -> None:
    """UploadError where the pickle names anything that is not a part of tensors. It is only read, never run.

    torch's reader, which comes later, holds to the same rule by itself; this check has the better words.
    """
    try:
        for opcode, argument, _ in genops(pickled):
            if opcode.name in _FOREIGN_OPCODES:
                raise UploadError(
                    f"the upload holds more than weights ({opcode.name} in its pickle); {SAVE_STATE}"
                )
            if opcode.name == "GLOBAL" and not _makes_tensors(str(argument)):
                raise UploadError(
                    f"the upload holds more than weights ({_named(str(argument))}), and reading that would run "
                    f"code from the file; {SAVE_STATE}"
                )
    except UploadError:
        raise
    except (ValueError, struct.error, UnicodeDecodeError, IndexError, RecursionError) as error:
        raise UploadError(_damaged(f"its pickle is no pickle: {str(error)[:60]}")) from None


def _makes_tensors(name: str) -> bool:
    package = name.partition(" ")[0].partition(".")[0]
    return name in _HARMLESS or package in _HARMLESS_PACKAGES


def _named(argument: str) -> str:
    """ "os system" -> "os.system" """
    return argument.replace(" ", ".")[:80]
