"""A teacher's logits on disk: further students of the same teacher train without its forward passes.

A batch follows from (seed, epoch, index) alone, so whatever is taught by the same teacher with the same images,
augmentation, batch size and seed meets the same batches, and the teacher says the same about them. Each such
combination has a folder of its own, with one file per epoch and in it one slot per batch: a digest of the logits
that it holds, and the logits as float32, which is what the teacher gave. A slot counts only where both agree. So
whatever interrupts a run leaves nothing that is read as whole, the next one goes on with the slots that lack, and
any number of runs may read and write at once: they write the same bytes into the same places.

Shapes: B batch, K classes.
"""

import errno
import hashlib
import json
import mmap
import os
import shutil
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dkl.batches import TrainingData
from dkl.files import replacing
from dkl.method import Shown
from dkl.provenance import device_name
from dkl.recipes import Distill
from dkl.teacher import Teacher, TeacherLogits

FOLDER = "teacher-logits"
"""In the data directory. It may be deleted at any time: what is missing is computed again."""
LEFT_FREE = 2**30
"""Bytes of the disk that are never filled."""
_DIGEST = 16


class KeptTeacher:
    """Says what `teacher` says, and asks it only about batches that no run has asked it about yet."""

    def __init__(
        self, teacher: TeacherLogits, folder: Path, *, batches: int, batch_size: int, classes: int, epochs: int
    ) -> None:
        """`batches` is their number in an epoch. ValueError where `folder` cannot be written to, or where all
        `epochs` would leave less than LEFT_FREE of the disk."""
        self.teacher = teacher
        self.folder = folder
        self.found = self.asked = 0
        """Batches whose logits were there, and others."""
        self._classes = classes
        self._slots, self._slot_bytes = batches, _DIGEST + 4 * batch_size * classes
        self._epoch: tuple[int, _Slots] | None = None
        _make_writable(folder)
        self._require_room(epochs)

    def logits(self, shown: Shown) -> Tensor:
        slots = self._slots_of(shown.epoch)
        if (kept := slots.read(shown.number, 4 * len(shown.y_B) * self._classes)) is not None:
            self.found += 1
            return torch.frombuffer(kept, dtype=torch.float32).view(-1, self._classes).to(shown.x_BCHW.device)
        self.asked += 1
        logits_BK = self.teacher.logits(shown)
        slots.write(shown.number, logits_BK.cpu().contiguous().numpy().tobytes())
        return logits_BK

    def _slots_of(self, epoch: int) -> "_Slots":
        if self._epoch is None or self._epoch[0] != epoch:
            _make_writable(self.folder)  # it may be gone: somebody needed the room
            self._epoch = epoch, _Slots(self._file(epoch), count=self._slots, nbytes=self._slot_bytes)
        return self._epoch[1]

    def _file(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch}"

    def _require_room(self, epochs: int) -> None:
        missing = sum(
            max(self._slots * self._slot_bytes - _taken(self._file(epoch)), 0) for epoch in range(1, epochs + 1)
        )
        free = shutil.disk_usage(self.folder).free
        if missing and free - missing < LEFT_FREE:
            raise ValueError(
                f"keep_teacher needs {_show(missing)} for {epochs} epochs in {self.folder} and leaves "
                f"{_show(LEFT_FREE)} free, the disk has {_show(free)}; make room, or leave keep_teacher out"
            )


class _Slots:
    """One epoch's file."""

    def __init__(self, path: Path, *, count: int, nbytes: int) -> None:
        """OSError where the disk lacks room for what the file does not hold yet."""
        missing = count * nbytes - _taken(path)
        free = shutil.disk_usage(path.parent).free
        if missing > 0 and free - missing < LEFT_FREE:
            raise OSError(
                errno.ENOSPC,
                f"the disk under {path.parent} has {_show(free)} free, and the teacher's logits of an epoch need "
                f"{_show(missing)} beside {_show(LEFT_FREE)} that stay free; make room and go on",
            )
        self._nbytes = nbytes
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        weakref.finalize(self, os.close, self._file)
        if os.fstat(self._file).st_size < count * nbytes:
            os.ftruncate(self._file, count * nbytes)
        self._mapped = mmap.mmap(self._file, count * nbytes, access=mmap.ACCESS_READ)

    def read(self, index: int, nbytes: int) -> bytearray | None:
        """The `nbytes` that a slot holds; None where it does not, or not yet."""
        start = index * self._nbytes
        content = bytearray(self._mapped[start + _DIGEST : start + _DIGEST + nbytes])
        return content if self._mapped[start : start + _DIGEST] == _digest(content) else None

    def write(self, index: int, content: bytes) -> None:
        # Not through the mapping: a full disk would end the process there, here it is an error.
        slot = _digest(content) + content
        if os.pwrite(self._file, slot, index * self._nbytes) < len(slot):
            raise OSError(errno.ENOSPC, "the disk is full, the teacher's logits could not be kept")


def keep(teacher: Teacher, recipe: Distill, data: TrainingData, data_dir: Path, device: str) -> KeptTeacher:
    """`teacher`, its logits kept in `data_dir` for every recipe that shows it the same batches.

    ValueError as `KeptTeacher`.
    """
    about = _about(teacher, recipe, data, device)
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    folder = data_dir / FOLDER / key[:32]
    kept = KeptTeacher(
        teacher,
        folder,
        batches=len(data.batches),
        batch_size=recipe.batch_size,
        classes=data.classes,
        epochs=recipe.epochs,
    )
    with replacing(folder / "about.json") as file:
        file.write(json.dumps(about, indent=1, sort_keys=True).encode())
    return kept


def _about(teacher: Teacher, recipe: Distill, data: TrainingData, device: str) -> dict[str, Any]:
    """All that the logits depend on. Another device or version of torch rounds otherwise."""
    asked = {"dataset", "augmentation", "batch_size", "seed", "precision", "compile"}
    return {
        "teacher": teacher.sha256,
        **recipe.teacher.model_dump(mode="json", include={"preprocessing"}),
        "data": data.sha256,
        **recipe.model_dump(mode="json", include=asked),
        "device": device_name(device),
        "torch": torch.__version__,
    }


def _make_writable(folder: Path) -> None:
    reason = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            reason = "no permission to write"
    except OSError as error:
        reason = error.strerror
    if reason:
        raise ValueError(
            f"keep_teacher writes to {folder}, which is not possible here ({reason}); make the data directory "
            "writable, or leave keep_teacher out"
        )


def _digest(content: bytes | bytearray) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST).digest()


def _taken(path: Path) -> int:
    """Bytes of the disk that the file takes: fewer than it is long while slots are empty."""
    return path.stat().st_blocks * 512 if path.exists() else 0


def _show(nbytes: int) -> str:
    return f"{nbytes / 2**30:.1f} GiB"
