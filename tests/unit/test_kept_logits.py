"""The teacher's logits on disk: nothing changes but that the teacher is not asked again."""

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dkl.architectures import CNN
from dkl.distill import distill
from dkl.events import Epoch, Finished
from dkl.kept_logits import FOLDER, LEFT_FREE, KeptTeacher
from dkl.method import Shown
from dkl.models import build
from dkl.recipes import Distill
from dkl.teacher import Teacher
from dkl.weights import load_checkpoint, save_checkpoint

SIZES = {"batches": 3, "batch_size": 4, "classes": 5, "epochs": 2}


class Counting:
    """Says of the n-th image of an epoch's batch what depends on nothing else."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def logits(self, shown: Shown) -> Tensor:
        self.asked.append((shown.epoch, shown.number))
        random = torch.Generator().manual_seed(100 * shown.epoch + shown.number)
        return torch.randn(len(shown.y_B), 5, generator=random)


def shown(epoch: int, number: int, images: int = 4) -> Shown:
    return Shown(epoch, number, torch.zeros(images, 1, 2, 2), torch.zeros(images, dtype=torch.long))


ALL = [shown(epoch, number, images=3 if number == 2 else 4) for epoch in (1, 2) for number in range(3)]
"""Of two epochs; the last batch is smaller."""


# --- what is kept -----------------------------------------------------------------------------------------


def test_the_second_reader_gets_the_same_bits_without_the_teacher(tmp_path: Path) -> None:
    first, second = (KeptTeacher(Counting(), tmp_path, **SIZES) for _ in range(2))
    given = [first.logits(batch) for batch in ALL]
    for batch, logits_BK in zip(ALL, given, strict=True):
        assert torch.equal(second.logits(batch), logits_BK)
    assert (first.asked, first.found, second.asked, second.found) == (6, 0, 0, 6)


def test_two_at_once_share_the_work(tmp_path: Path) -> None:
    one, other = (KeptTeacher(Counting(), tmp_path, **SIZES) for _ in range(2))
    one.logits(ALL[0])
    other.logits(ALL[0])
    other.logits(ALL[1])
    assert torch.equal(one.logits(ALL[1]), Counting().logits(ALL[1]))
    assert (one.asked, one.found, other.asked, other.found) == (1, 1, 1, 1)


@pytest.mark.parametrize("damage", ["torn", "cut off", "deleted"])
def test_what_is_damaged_is_asked_for_again(damage: str, tmp_path: Path) -> None:
    writer = KeptTeacher(Counting(), tmp_path, **SIZES)
    given = [writer.logits(batch) for batch in ALL]
    path = tmp_path / "epoch-1"
    content = bytearray(path.read_bytes())
    if damage == "torn":
        content[len(content) // 2] ^= 1  # in the middle of the second of three slots
        path.write_bytes(content)
    elif damage == "cut off":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()
    teacher = Counting()
    reader = KeptTeacher(teacher, tmp_path, **SIZES)
    for batch, logits_BK in zip(ALL, given, strict=True):
        assert torch.equal(reader.logits(batch), logits_BK)
    assert teacher.asked == {
        "torn": [(1, 1)], "cut off": [(1, 1), (1, 2)], "deleted": [(1, 0), (1, 1), (1, 2)]
    }[damage]  # fmt: skip
    assert path.read_bytes() == writer_bytes(tmp_path / "again")


def writer_bytes(folder: Path) -> bytes:
    writer = KeptTeacher(Counting(), folder, **SIZES)
    for batch in ALL:
        writer.logits(batch)
    return (folder / "epoch-1").read_bytes()


def test_the_folder_may_be_deleted_under_a_run(tmp_path: Path) -> None:
    kept = KeptTeacher(Counting(), tmp_path / "key", **SIZES)
    kept.logits(ALL[0])
    shutil.rmtree(tmp_path / "key")
    for batch in ALL[1:]:
        assert torch.equal(kept.logits(batch), Counting().logits(batch))
    assert [path.name for path in (tmp_path / "key").iterdir()] == ["epoch-2"]


# --- the disk ---------------------------------------------------------------------------------------------

Usage = namedtuple("Usage", "total used free")


def has_free(nbytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dkl.kept_logits.shutil.disk_usage", lambda _: Usage(2**40, 2**40 - nbytes, nbytes))


def test_a_disk_that_would_run_full_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = {**SIZES, "batches": 50_000, "batch_size": 64, "classes": 1000}
    has_free(LEFT_FREE + 2**30, monkeypatch)
    with pytest.raises(ValueError, match=r"needs 23\.8 GiB for 2 epochs in .* leaves 1\.0 GiB free.*has 2\.0 GiB"):
        KeptTeacher(Counting(), tmp_path, **large)


def test_what_is_there_already_needs_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Slots larger than a block of the disk, so that what the files take is what they hold.
    sizes = {**SIZES, "batches": 1, "batch_size": 4096}
    batches = [shown(epoch, 0, images=4096) for epoch in (1, 2)]
    writer = KeptTeacher(Counting(), tmp_path, **sizes)
    given = [writer.logits(batch) for batch in batches]
    has_free(0, monkeypatch)
    reader = KeptTeacher(Counting(), tmp_path, **sizes)
    assert all(torch.equal(reader.logits(b), logits) for b, logits in zip(batches, given, strict=True))
    (tmp_path / "epoch-2").unlink()
    with pytest.raises(OSError, match=r"has 0\.0 GiB free, and the teacher's logits of an epoch need"):
        reader.logits(shown(3, 0))


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("in the way")
    with pytest.raises(ValueError, match=r"keep_teacher writes to .* not possible here .*leave keep_teacher out"):
        KeptTeacher(Counting(), tmp_path / FOLDER / "key", **SIZES)


# --- in a run ---------------------------------------------------------------------------------------------


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "teacher.safetensors"
    network = build(CNN(width=8), channels=1, classes=10)
    save_checkpoint(path, network, architecture=CNN(width=8), channels=1, classes=10, dataset="digits")
    return path


def recipe(teacher: Path, **changes: Any) -> Distill:
    given: dict[str, Any] = {"kind": "gkl-kd", "prior": "teacher", **changes.pop("objective", {})}
    return Distill(
        **{
            "dataset": "digits", "model": {"kind": "cnn", "width": 4}, "images": 200, "batch_size": 64,
            "teacher": {"checkpoint": load_checkpoint(teacher).sha256}, "objective": given, "epochs": 2,
            "optimizer": {"lr": 0.1}, "keep_teacher": True, **changes,
        }
    )  # fmt: skip


def taught(recipe: Distill, teacher: Path, workdir: Path, data_dir: Path) -> Finished:
    workdir.mkdir()
    *_, last = distill(recipe, load_checkpoint(teacher), workdir, device="cpu", data_dir=data_dir)
    assert isinstance(last, Finished)
    return last


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Shown]:
    """What the teacher is asked about."""
    batches: list[Shown] = []
    says = Teacher.logits

    def logits(self: Teacher, shown: Shown) -> Tensor:
        batches.append(shown)
        return says(self, shown)

    monkeypatch.setattr(Teacher, "logits", logits)
    return batches


def test_students_are_the_same_with_and_without(teacher: Path, tmp_path: Path, asked: list[Shown]) -> None:
    plain = taught(recipe(teacher, keep_teacher=False), teacher, tmp_path / "plain", tmp_path)
    first = taught(recipe(teacher), teacher, tmp_path / "first", tmp_path)
    asked.clear()
    second = taught(recipe(teacher), teacher, tmp_path / "second", tmp_path)
    assert not asked
    students = {run.result.checkpoint_sha256 for run in (plain, first, second)}
    assert len(students) == 1
    assert not any("on disk" in note for note in plain.result.notes)
    assert any("leave its forward passes out" in note for note in second.result.notes)


def test_another_objective_and_student_share_them(teacher: Path, tmp_path: Path, asked: list[Shown]) -> None:
    taught(recipe(teacher), teacher, tmp_path / "first", tmp_path)
    asked.clear()
    changes = {"objective": {"prior": "none"}, "model": {"kind": "cnn", "width": 2}, "optimizer": {"lr": 0.01}}
    taught(recipe(teacher, **changes), teacher, tmp_path / "other", tmp_path)
    assert not asked


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"batch_size": 50}, {"images": 192}, {"augmentation": None}, {"precision": "bfloat16"}]
)
def test_other_batches_have_logits_of_their_own(
    change: dict[str, Any], teacher: Path, tmp_path: Path, asked: list[Shown]
) -> None:
    taught(recipe(teacher, epochs=1), teacher, tmp_path / "first", tmp_path)
    asked.clear()
    taught(recipe(teacher, epochs=1, **change), teacher, tmp_path / "other", tmp_path)
    assert asked
    assert len(list((tmp_path / FOLDER).iterdir())) == 2


def test_a_stopped_run_goes_on_with_what_is_there(teacher: Path, tmp_path: Path, asked: list[Shown]) -> None:
    asks = recipe(teacher, objective={"prior": "previous-epoch"})
    whole = taught(asks, teacher, tmp_path / "whole", tmp_path / "data of whole")
    asked.clear()
    (tmp_path / "parts").mkdir()
    events = distill(asks, load_checkpoint(teacher), tmp_path / "parts", device="cpu", data_dir=tmp_path)
    for event in events:
        if isinstance(event, Epoch):
            break
    next(events)  # into the second epoch
    events.close()
    (tmp_path / "parts" / "last.pt").unlink()  # as a crash loses work that was not kept yet
    *_, parts = distill(asks, load_checkpoint(teacher), tmp_path / "parts", device="cpu", data_dir=tmp_path)
    assert isinstance(parts, Finished)
    assert parts.result.checkpoint_sha256 == whole.result.checkpoint_sha256
    assert len(asked) == len({(batch.epoch, batch.number) for batch in asked}) == 8
