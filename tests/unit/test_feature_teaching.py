"""Distilling features: every published pair with every objective, and what becomes of a student on digits."""

import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dkl import architectures
from dkl.architectures import (
    CNN,
    VGG,
    MobileNetV2,
    ResNet,
    ShuffleNetV1,
    ShuffleNetV2,
    ThinResNet,
    TimmModel,
    WideResNet,
    show_model,
)
from dkl.batches import Batches, ResidentRows, TrainingData
from dkl.catalog import resolve
from dkl.datasets import Arrays
from dkl.distill import distill
from dkl.events import DistillResult, Epoch, Finished
from dkl.feature_teaching import FeatureTeaching
from dkl.method import Shown
from dkl.models import build
from dkl.recipes import Distill, Train
from dkl.teacher import Teacher
from dkl.train import train
from dkl.updates import Network, Update
from dkl.weights import LoadedModel, load_checkpoint

close = torch.testing.assert_close
KINDS = ["at-kd", "ofd", "crd", "reviewkd"]


# --- any pair ---------------------------------------------------------------------------------------------


def data_of(side: int, *, images: int = 6, batch: int = 2, classes: int = 3) -> TrainingData:
    source = np.random.default_rng(0)
    pixels = source.integers(0, 256, (images, side, side, 3), np.uint8)
    arrays = Arrays(pixels, np.arange(images) % classes, classes)
    rows = ResidentRows(arrays, batch_size=batch, seed=0, device="cpu")
    return TrainingData(
        Batches(rows, augmentations=(None,), seed=0),
        None,
        channels=3,
        classes=classes,
        smallest_batch=batch,
        labels=arrays.labels,
        class_counts=(images // classes,) * classes,
        sha256="0" * 64,
    )


def recipe_of(kind: str, **changes: Any) -> Distill:
    objective = {"kind": kind, **changes.pop("objective", {})}
    if kind == "crd":
        objective.setdefault("negatives", 8)
    base: dict[str, Any] = {"model": {"kind": "cnn"}, "teacher": {"checkpoint": "0" * 64}, "epochs": 1}
    return Distill(dataset="digits", objective=objective, **{**base, **changes})


def method_for(kind: str, teacher: nn.Module, data: TrainingData, **changes: Any) -> FeatureTeaching:
    loaded = LoadedModel(teacher, "teacher", channels=3, classes=data.classes, dataset=None, sha256="0" * 64)
    frozen = Teacher(loaded, teacher, dataset="digits", channels=3, classes=data.classes)
    return FeatureTeaching(recipe_of(kind, **changes), frozen, data, device="cpu")


class Lesson:
    """A student and what teaches it."""

    def __init__(
        self, kind: str, student: nn.Module, teacher: nn.Module, data: TrainingData, **changes: Any
    ) -> None:
        self.student, self.data = student, data
        self.method = method_for(kind, teacher, data, **changes)
        parameters = [*student.parameters(), *self.method.meet(student)]
        self.optimizer = torch.optim.SGD(parameters, 1e-4, momentum=0.9)

    def update(self, number: int, micro_batch: int | None = None) -> Update:
        shown = Shown(1, number, *self.data.batches.batch(1, number))
        network = Network(self.student, self.student, self.student)
        return self.method.update(network, self.optimizer, shown, micro_batch=micro_batch)


def a_pair(teacher: architectures.Model, student: architectures.Model) -> tuple[nn.Module, nn.Module]:
    return copy.deepcopy(fresh(teacher)), copy.deepcopy(fresh(student))


@lru_cache(maxsize=2)
def fresh(model: architectures.Model) -> nn.Module:
    torch.manual_seed(0)
    return build(model, channels=3, classes=3)


X4, SMALL_X4 = ThinResNet(depth=32, width=4), ThinResNet(depth=8, width=4)
CIFAR = [
    (ThinResNet(depth=56), ThinResNet(depth=20)),
    (ThinResNet(depth=110), ThinResNet(depth=32)),
    (X4, SMALL_X4),
    (WideResNet(depth=40, width=2), WideResNet(depth=16, width=2)),
    (WideResNet(depth=40, width=2), WideResNet(depth=40, width=1)),
    (VGG(depth=13), VGG(depth=8)),
    (X4, ShuffleNetV1()),
    (WideResNet(depth=40, width=2), ShuffleNetV1()),
    (VGG(depth=13), MobileNetV2()),
    (ResNet(depth=50), MobileNetV2()),
    (X4, ShuffleNetV2()),
]
RESNET18, RESNET34, RESNET50, MOBILENET = (
    TimmModel(name=name) for name in ("resnet18", "resnet34", "resnet50", "mobilenetv1_100")
)
IMAGENET = [(RESNET34, RESNET18), (RESNET50, MOBILENET)]
HEAVY = {ResNet(depth=50), RESNET34, RESNET50}
PAIRS = [
    pytest.param(*pair, side, id="-".join(map(show_model, pair)), marks=[pytest.mark.slow] * (pair[0] in HEAVY))
    for pairs, side in ((CIFAR, 32), (IMAGENET, 64))
    for pair in pairs
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("teacher", "student", "side"), PAIRS)
def test_every_published_pair_takes_every_objective(
    kind: str, teacher: architectures.Model, student: architectures.Model, side: int
) -> None:
    if isinstance(teacher, TimmModel):
        pytest.importorskip("timm")
    knowing, learning = a_pair(teacher, student)
    lesson = Lesson(kind, learning, knowing, data_of(side))
    for number in range(2):
        update = lesson.update(number)
        assert update.terms[kind] > 0
        assert sum(update.terms.values()) == pytest.approx(update.loss)
    for name, parameter in (*learning.named_parameters(), *lesson.method.comparison.named_parameters()):
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("kind", "teacher", "student", "images", "numbers"),
    [
        ("at-kd", X4, SMALL_X4, 6, 0),
        ("ofd", X4, SMALL_X4, 6, 86_912),
        # The reference leaves a stage out here: 128 * 256 + 2 * 256.
        pytest.param("ofd", RESNET50, MOBILENET, 6, 2_759_680 + 33_280, marks=pytest.mark.slow),
        ("reviewkd", X4, SMALL_X4, 6, 1_808_774),
        pytest.param("reviewkd", RESNET34, RESNET18, 6, 7_552_904, marks=pytest.mark.slow),
        pytest.param("reviewkd", RESNET50, MOBILENET, 6, 28_664_328, marks=pytest.mark.slow),
        ("crd", X4, SMALL_X4, 50_000, 2 * (256 + 1) * 128 + 2 * 50_000 * 128),
    ],
)
def test_what_is_thrown_away_has_the_references_size(
    kind: str, teacher: architectures.Model, student: architectures.Model, images: int, numbers: int
) -> None:
    if isinstance(teacher, TimmModel):
        pytest.importorskip("timm")
    data = data_of(32, images=6)
    data = type(data)(**{**vars(data), "labels": np.arange(images) % 3})
    knowing, learning = a_pair(teacher, student)
    method = method_for(kind, knowing, data)
    method.meet(learning)
    assert method.extra_parameters == numbers


def test_networks_with_different_numbers_of_stages_are_paired_from_the_end() -> None:
    knowing, learning = a_pair(ResNet(width=8), ThinResNet(depth=8))  # four stages and three
    for kind in KINDS:
        lesson = Lesson(kind, learning, knowing, data_of(32))
        assert lesson.update(0).terms[kind] > 0


# --- the update -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_stays_as_it_is(kind: str) -> None:
    knowing, learning = a_pair(ThinResNet(depth=8), ThinResNet(depth=8))
    knowing.train()  # as a careless caller leaves it
    before = {name: value.clone() for name, value in knowing.state_dict().items()}
    statistics = {name: value.clone() for name, value in learning.state_dict().items()}
    lesson = Lesson(kind, learning, knowing, data_of(16))
    close(learning.state_dict(), statistics, rtol=0, atol=0)  # meeting it leaves no trace
    assert learning.training
    lesson.update(0)
    assert not any(module.training for module in knowing.modules())
    assert not any(p.requires_grad for p in knowing.parameters())
    close(knowing.state_dict(), before, rtol=0, atol=0)


class Plain(nn.Module):
    """A network whose images do not influence each other."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train = lambda mode=True, module=module: module  # type: ignore[method-assign, misc]

    def tapped(self, x_BCHW: Tensor) -> Any:
        return self.network.tapped(x_BCHW)

    def last_norms(self) -> Any:
        return self.network.last_norms()


@pytest.mark.parametrize("kind", ["at-kd", "crd"])
def test_parts_of_a_batch_teach_what_the_whole_does(kind: str) -> None:
    knowing, learning = a_pair(ThinResNet(depth=8), ThinResNet(depth=8))
    start = {name: value.clone() for name, value in learning.eval().state_dict().items()}
    data = data_of(16, images=12, batch=5)
    weights, losses = [], []
    for micro_batch in (None, 2):
        learning.load_state_dict(start)
        torch.manual_seed(1)
        lesson = Lesson(kind, Plain(learning).double(), knowing.double(), in_double(data))
        lesson.method.comparison.double()
        if kind == "crd":
            lesson.method.comparison.contrast.partition_2.fill_(20.0)  # else of the first part's images
        updates = [lesson.update(number, micro_batch) for number in range(2)]
        losses.append([update.loss for update in updates])
        weights.append({name: value.clone() for name, value in learning.state_dict().items()})
        weights[-1] |= {f"beside {name}": v.clone() for name, v in lesson.method.comparison.state_dict().items()}
    assert losses[1] == pytest.approx(losses[0], rel=1e-10)
    close(weights[1], weights[0], rtol=1e-9, atol=1e-12)


def in_double(data: TrainingData) -> TrainingData:
    class Double(Batches):
        def batch(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
            x, y = super().batch(epoch, index)
            return x.double(), y

    batches = Double(data.batches.source, augmentations=(None,), seed=0)
    return type(data)(**{**vars(data), "batches": batches})


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_float32_in_bfloat16(kind: str) -> None:
    knowing, learning = a_pair(ThinResNet(depth=8), ThinResNet(depth=8))
    lesson = Lesson(kind, learning, knowing, data_of(16), precision="bfloat16")
    seen: list[Tensor] = []
    lesson.method.comparison.register_forward_hook(lambda _, __, loss: seen.append(loss))
    lesson.update(0)
    assert seen[0].dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in lesson.method.comparison.parameters())


def test_crd_remembers_the_images_it_saw() -> None:
    knowing, learning = a_pair(ThinResNet(depth=8), ThinResNet(depth=8))
    data = data_of(16, images=6, batch=2)
    lesson = Lesson("crd", learning, knowing, data)
    memory = lesson.method.comparison.contrast.memory_student_ND
    before = memory.clone()
    lesson.update(1)
    changed = (memory != before).any(1).nonzero()[:, 0]
    assert changed.tolist() == sorted(data.batches.positions(1, 1).tolist())
    close(memory[changed].norm(dim=1), torch.ones(2))


def test_a_warm_up_starts_small() -> None:
    knowing, learning = a_pair(ThinResNet(depth=8), ThinResNet(depth=8))
    terms = []
    for warmup in (1, 10):
        torch.manual_seed(0)
        lesson = Lesson("reviewkd", learning, knowing, data_of(16), objective={"warmup": warmup})
        lesson.optimizer.param_groups[0]["lr"] = 0.0
        terms.append(lesson.update(0).terms["reviewkd"])
    assert terms[1] == pytest.approx(terms[0] / 10, rel=1e-5)


def test_a_loss_that_is_not_finite_stops_before_the_step() -> None:
    knowing, learning = a_pair(ThinResNet(depth=8), ThinResNet(depth=8))
    lesson = Lesson("crd", learning, knowing, data_of(16))
    memory = lesson.method.comparison.contrast.memory_student_ND.clone()
    learning.fc.weight.data.fill_(torch.inf)
    before = learning.fc.bias.clone()
    with pytest.raises(FloatingPointError, match="loss is nan"):
        lesson.update(0)
    close(learning.fc.bias, before)
    close(lesson.method.comparison.contrast.memory_student_ND, memory, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_without_features_is_refused(kind: str) -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))
    network = build(ThinResNet(depth=8), channels=3, classes=3)
    for student, teacher in ((plain, network), (network, plain)):
        with pytest.raises(ValueError, match="Sequential offers no features to compare; distil its logits"):
            method_for(kind, teacher, data_of(16)).meet(student)


# --- positions --------------------------------------------------------------------------------------------


def test_positions_are_those_of_the_images() -> None:
    data = data_of(4, images=7, batch=3)
    seen: list[int] = []
    for index in range(len(data.batches)):
        positions = data.batches.positions(2, index)
        x, y = data.batches.batch(2, index)
        assert y.tolist() == data.labels[positions.numpy()].tolist()
        close(x, data.batches.source.images[positions].float() / 255)  # type: ignore[attr-defined]
        seen += positions.tolist()
    assert sorted(seen) == list(range(7))


# --- on digits --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that knows digits fairly well."""
    folder = tmp_path_factory.mktemp("teacher")
    recipe = resolve("natural-digits", {"epochs": 3, "model": {"kind": "cnn", "width": 12}})
    assert isinstance(recipe, Train)
    list(train(recipe, folder, device="cpu", data_dir=folder))
    return folder / "model.safetensors"


def student(kind: str, teacher: Path, **changes: Any) -> Distill:
    return recipe_of(
        kind,
        model=CNN(width=4),
        teacher={"checkpoint": load_checkpoint(teacher).sha256},
        augmentation=None,
        epochs=changes.pop("epochs", 3),
        optimizer={"lr": 0.05},
        batch_size=64,
        **changes,
    )


def taught(recipe: Distill, teacher: Path, workdir: Path) -> tuple[DistillResult, list[Epoch]]:
    workdir.mkdir(exist_ok=True)
    events = list(distill(recipe, load_checkpoint(teacher), workdir, device="cpu", data_dir=workdir))
    assert isinstance(events[-1], Finished)
    assert isinstance(events[-1].result, DistillResult)
    return events[-1].result, [event for event in events if isinstance(event, Epoch)]


LIGHT = {"at-kd": {"weight": 100.0}, "ofd": {"weight": 1e-3}, "crd": {"negatives": 64}, "reviewkd": {"warmup": 2}}


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_learns(kind: str, teacher: Path, tmp_path: Path) -> None:
    result, epochs = taught(student(kind, teacher, objective=LIGHT[kind], images=1000), teacher, tmp_path)
    assert result.clean_accuracy > 0.7
    assert epochs[-1].terms["label"] < epochs[0].terms["label"]
    assert sum(epochs[-1].terms.values()) == pytest.approx(epochs[-1].loss)
    assert (result.extra_parameters > 0) == (kind != "at-kd")
    assert load_checkpoint(tmp_path / "model.safetensors").sha256 == result.checkpoint_sha256


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_goes_on_to_the_same_weights(kind: str, teacher: Path, tmp_path: Path) -> None:
    recipe = student(kind, teacher, objective=LIGHT[kind], epochs=2, images=256)
    whole, _ = taught(recipe, teacher, tmp_path / "whole")
    (tmp_path / "parts").mkdir()
    events = distill(recipe, load_checkpoint(teacher), tmp_path / "parts", device="cpu", data_dir=tmp_path)
    for event in events:
        if isinstance(event, Epoch):
            break
    for _ in range(2):
        next(events)  # into the second epoch
    events.close()
    parts, _ = taught(recipe, teacher, tmp_path / "parts")
    assert parts.checkpoint_sha256 == whole.checkpoint_sha256
