"""A distillation on one's own machine: whom it learns from, as `--teacher` or a change says it."""

import hashlib
import re
from pathlib import Path

import pytest

from dkl.events import DistillResult, Finished
from dkl.local import Judged, LocalRun, prepare, teacher_called
from dkl.recipes import Distill

NOBODY = Judged()


def kd(tmp_path: Path, *changes: str, teacher: str | None = None, name: str = "kd-digits") -> LocalRun:
    return prepare(name, changes, judged=NOBODY, teacher=teacher_called(teacher), workdir=tmp_path / "student")


def test_what_teacher_may_say(tmp_path: Path) -> None:
    file = tmp_path / "resnet18"
    file.write_bytes(b"weights")
    assert teacher_called(None) == NOBODY
    assert teacher_called(str(file)) == Judged(checkpoint=file)
    assert teacher_called("a/b/model.safetensors") == Judged(checkpoint=Path("a/b/model.safetensors"))
    assert teacher_called("mine:clip") == Judged(function="mine:clip")
    assert teacher_called("cifar10/Linf/Wang2023Better_WRN-28-10").given.keys() == {"--zoo"}
    assert teacher_called("resnet34.tv_in1k") == Judged(timm="resnet34.tv_in1k")


def test_a_file_is_named_by_its_content(tmp_path: Path) -> None:
    file = tmp_path / "teacher.safetensors"
    file.write_bytes(b"weights")
    run = kd(tmp_path, "epochs=2", teacher=str(file))
    assert isinstance(run.recipe, Distill)
    assert run.recipe.teacher.model_dump()["checkpoint"] == hashlib.sha256(b"weights").hexdigest()
    assert (run.checkpoint, run.recipe.epochs) == (file, 2)


def test_a_change_names_a_teacher_too(tmp_path: Path) -> None:
    run = kd(tmp_path, "teacher.timm=resnet34.tv_in1k")
    assert isinstance(run.recipe, Distill)
    assert run.recipe.teacher.model_dump() == {"timm": "resnet34.tv_in1k"}
    assert run.checkpoint is None


@pytest.mark.parametrize(
    ("name", "changes", "teacher", "said"),
    [
        ("kd-digits", (), None, "kd-digits learns from a teacher: say which with --teacher FILE"),
        ("kd-digits", (), "no.safetensors", "there is no file no.safetensors"),
        ("kd-digits", ("teacher.job=0123456789ab",), None, "here say which teacher with --teacher FILE"),
        ("kd-digits", (f"teacher.checkpoint={'0' * 64}",), None, "here say which teacher with --teacher FILE"),
        ("kd-digits", (), "cifar10/Linf/nobody", "teacher.zoo: unknown zoo model"),
        ("natural-digits", (), "resnet18", "natural-digits learns from no teacher; leave out --teacher"),
    ],
)
def test_a_mistake_is_one_sentence(
    name: str, changes: tuple[str, ...], teacher: str | None, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        kd(tmp_path, *changes, teacher=teacher, name=name)


def test_no_model_is_judged(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="kd-digits trains a model of its own; leave out --zoo"):
        prepare("kd-digits", [], judged=Judged(zoo="x"), teacher=NOBODY, workdir=tmp_path)


def test_teacher_and_student_on_digits(tmp_path: Path) -> None:
    small = ["epochs=1", "images=256", "seed=3"]
    teacher = prepare("natural-digits", [*small, "model.width=4"], judged=NOBODY, workdir=tmp_path / "teacher")
    assert isinstance(list(teacher.events(device="cpu", data_dir=tmp_path))[-1], Finished)

    run = kd(tmp_path, *small, "model.width=2", teacher=str(tmp_path / "teacher" / "model.safetensors"))
    *_, finished = run.events(device="cpu", data_dir=tmp_path)
    assert isinstance(finished, Finished)
    assert isinstance(finished.result, DistillResult)
    assert (finished.result.teacher, finished.result.extra_parameters) == ("CNN-4", 0)
