"""Room on the disk under data_dir: nothing is taken in, and no job begun, where it would run full."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.settings import Settings


class FullError(OSError):
    """The disk has too little room; the message says how much, and what to do. It passes when somebody does it."""


def free_bytes(settings: Settings) -> int:
    return shutil.disk_usage(_existing(settings.data_dir)).free


def enough_space(settings: Settings, nbytes: int = 0) -> bool:
    """Whether min_free_bytes are free, and would still be with `nbytes` more on the disk."""
    return free_bytes(settings) - nbytes >= settings.min_free_bytes


def require_space(settings: Settings, nbytes: int = 0) -> None:
    """FullError where there is not `enough_space`."""
    if not enough_space(settings, nbytes):
        raise FullError(
            f"the disk under {settings.data_dir} has {show_bytes(free_bytes(settings))} free, and needs "
            f"{show_bytes(nbytes + settings.min_free_bytes)} for this; free some with dklbench gc or delete files "
            "of jobs, then try again"
        )


@contextmanager
def noticing_full(folder: Path) -> Iterator[None]:
    """FullError where the disk under `folder` runs full after all: others write to it, too."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise FullError(f"the disk under {folder} is full; go on when there is room") from error


def show_bytes(nbytes: int) -> str:
    """For people: "512 bytes", "1.5 GiB"."""
    if nbytes < 1024:
        return f"{nbytes} bytes"
    size, unit = float(nbytes), ""
    for unit in ("KiB", "MiB", "GiB", "TiB"):  # noqa: B007  (read after the loop)
        size /= 1024
        if size < 1024:
            break
    return f"{size:.1f} {unit}"


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.parent)
