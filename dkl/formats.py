"""What kind of file an upload is, by its bytes alone, and whether its table of contents holds. No torch here.

What is left after `check_upload` is a safetensors file with a sound header, or a zip archive exactly as torch.save
writes it. For everything else there is a sentence that says what it is and what to do.
"""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Literal

from dkl.archives import SAVE_STATE, UploadError, check_archive
from dkl.headers import HeaderError, read_header

Format = Literal["safetensors", "pt"]
_ELSEWHERE = "load it where it comes from and " + SAVE_STATE


def check_upload(path: Path) -> Format:
    """Which of the two formats the file at `path` has; UploadError for anything else and anything odd.

    Reads no more than its tables of contents, and unpickles nothing.
    """
    with open_plainly(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(512)
        if size == 0:
            raise UploadError("the upload is empty; upload the file again")
        if head[:4] == b"PK\x03\x04" or head[:4] == b"PK\x05\x06":
            check_archive(file, size)
            return "pt"
        if what := _recognised(head):
            raise UploadError(f"the upload is {what}")
        try:
            file.seek(0)
            read_header(file)
        except HeaderError as error:
            if head[8:9] != b"{":
                raise UploadError(_unknown(head)) from None
            raise UploadError(
                f"the upload is no sound safetensors file: {error}; write it again with "
                "safetensors.torch.save_file and upload that"
            ) from None
        return "safetensors"


def open_plainly(path: Path) -> BufferedReader:
    """The regular file at `path`, open for reading; UploadError for links, folders, pipes and devices."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise UploadError("the upload is no longer stored here; upload the file again") from None
    except OSError as error:
        what = "is a link" if error.errno == errno.ELOOP else f"cannot be opened ({error.strerror})"
        raise UploadError(f"the upload {what}; upload the file itself") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UploadError("the upload is no plain file but a folder, a pipe or a device; upload the file itself")
    return os.fdopen(descriptor, "rb")


# --- other formats ----------------------------------------------------------------------------------------

_OLD_TORCH = (
    "a bare pickle, as torch.save wrote before 1.6, which cannot be checked before it is read; rewrite it on your "
    "own machine with torch.save(torch.load(FILE, weights_only=True), NEW), or with dklbench convert"
)
_PACKED = "; unpack it and upload the file of weights in it"
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "compressed with gzip" + _PACKED),
    (b"BZh", "compressed with bzip2" + _PACKED),
    (b"\xfd7zXZ\x00", "compressed with xz" + _PACKED),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd" + _PACKED),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive" + _PACKED),
    (b"Rar!\x1a\x07", "a rar archive" + _PACKED),
    (b"GGUF", "a GGUF file, made for language models; upload the weights as safetensors"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes; convert the weights to torch and " + SAVE_STATE),
    (b"\x93NUMPY", "a NumPy array; upload the weights as safetensors"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file it points to; fetch that with git lfs pull"),
    (b"\x7fELF", "a program; upload the weights as safetensors"),
    (b"%PDF", "a PDF document; upload the weights as safetensors"),
    (b"\x89PNG", "a picture; upload the weights as safetensors"),
    (b"\xff\xd8\xff", "a picture; upload the weights as safetensors"),
    (b"\x08\x01\x12", "a TensorFlow model; convert the weights to torch and " + SAVE_STATE),
)


def _recognised(head: bytes) -> str | None:
    """What the first 512 bytes show a file to be, where it is a kind that is often uploaded by mistake."""
    if found := next((what for magic, what in _MAGIC if head.startswith(magic)), None):
        return found
    if head[257:262] == b"ustar":
        return "a tar archive" + _PACKED
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite model; convert the weights to torch and " + SAVE_STATE
    if head[:1] == b"\x08" and any(maker in head[:80] for maker in (b"pytorch", b"onnx", b"keras2onnx")):
        return "an ONNX model; " + _ELSEWHERE
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return _OLD_TORCH
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"<":
        return "a web page: a sharing site answered with a page; download the file itself and upload that"
    if head[8:9] != b"{" and _is_text(head):
        return "text, not weights; upload a .safetensors file, or what torch.save wrote"
    return None


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("ascii")
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character in "\r\n\t" for character in text)


def _unknown(head: bytes) -> str:
    return (
        f"the upload begins with the bytes {head[:8].hex(' ')}, which no file of weights does; upload a "
        ".safetensors file, or what torch.save wrote"
    )
