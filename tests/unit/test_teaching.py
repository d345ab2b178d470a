"""Distilling: the references' trainers step by step, and what becomes of a student on handwritten digits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from golden_kd import entry, tensor
from torch import Tensor, nn

from dkl.catalog import resolve
from dkl.distill import distill
from dkl.events import DistillResult, Epoch, Finished
from dkl.lessons import GKLKD, IKLKD
from dkl.method import Shown
from dkl.recipes import Distill, Train
from dkl.schedules import learning_rate
from dkl.teaching import Teaching
from dkl.train import train
from dkl.updates import Network
from dkl.weights import load_checkpoint

close = torch.testing.assert_close


# --- golden -----------------------------------------------------------------------------------------------


class Lookup:
    """A linear teacher in float64."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight, self.bias = weight, bias

    def logits(self, shown: Shown) -> Tensor:
        return shown.x_BCHW @ self.weight.T + self.bias


def lesson(hyper: dict[str, Any]) -> IKLKD | GKLKD:
    # The authors' code calls the weight of the cross-entropy alpha, and that of the wMSE beta.
    common = {
        "label_weight": hyper["CE_WEIGHT"], "wmse_weight": hyper["BETA"], "ce_weight": hyper["ALPHA"],
        "temperature": hyper["T"], "prior_temperature": hyper["T2"], "warmup": hyper["WARMUP"],
    }  # fmt: skip
    return GKLKD(gamma=hyper["GAMMA"], **common) if "GAMMA" in hyper else IKLKD(**common)


@pytest.mark.parametrize("name", ["trainer/ikl_kd_3_epochs", "trainer/gkl_kd_3_epochs"])
def test_three_epochs_are_the_references(name: str) -> None:
    e = entry(name)
    hyper, given, expected = e["hyper"], e["inputs"], e["outputs"]
    recipe = Distill(
        dataset="digits",
        model={"kind": "cnn"},
        teacher={"checkpoint": "0" * 64},
        objective=lesson(hyper),
        epochs=3,
        optimizer={
            "lr": hyper["LR"],
            "momentum": hyper["MOMENTUM"],
            "weight_decay": hyper["WEIGHT_DECAY"],
            "schedule": {"kind": "steps", "epochs": [stage + 1 for stage in hyper["LR_DECAY_STAGES"]]},
        },
    )
    student = nn.Linear(3, 6).double()
    student.weight.data, student.bias.data = tensor(given["student_W"]), tensor(given["student_b"])
    teacher = Lookup(tensor(given["teacher_W"]), tensor(given["teacher_b"]))
    method = Teaching(recipe, teacher, classes=6, device="cpu")
    sgd = recipe.optimizer
    optimizer = torch.optim.SGD(student.parameters(), sgd.lr, sgd.momentum, weight_decay=sgd.weight_decay)
    x, y = tensor(given["X"]), tensor(given["Y"])
    seen = []
    for epoch in (1, 2, 3):
        optimizer.param_groups[0]["lr"] = learning_rate(sgd, epoch, 3)
        close(learning_rate(sgd, epoch, 3), expected["lr_per_epoch"][epoch - 1], rtol=1e-12, atol=0)
        for number, (start, stop) in enumerate(given["batch_slices"]):
            shown = Shown(epoch, number, x[start:stop], y[start:stop])
            network = Network(student, student, student)
            terms = method.update(network, optimizer, shown, micro_batch=None).terms
            seen.append([terms["label"], terms["wmse"] + terms["soft_ce"]])
        method.end_epoch()
        if f"student_W_after_epoch_{epoch}" in expected:
            close(student.weight.data, tensor(expected[f"student_W_after_epoch_{epoch}"]), rtol=1e-10, atol=1e-10)
            close(student.bias.data, tensor(expected[f"student_b_after_epoch_{epoch}"]), rtol=1e-10, atol=1e-10)
            assert method.prior is not None
            close(method.prior.rows, tensor(expected[f"class_prior_after_epoch_{epoch}"]), rtol=1e-10, atol=1e-10)
    close(torch.tensor(seen), torch.tensor(expected["losses_ce_kd_per_iteration"]), rtol=1e-6, atol=1e-6)


# --- on digits --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that knows digits fairly well."""
    folder = tmp_path_factory.mktemp("teacher")
    recipe = resolve("natural-digits", {"epochs": 3})
    assert isinstance(recipe, Train)
    list(train(recipe, folder, device="cpu", data_dir=folder))
    return folder / "model.safetensors"


def student(kind: str, teacher: Path, **changes: Any) -> Distill:
    return Distill(
        dataset="digits",
        model={"kind": "cnn", "width": 8},
        teacher={"checkpoint": load_checkpoint(teacher).sha256},
        objective={"kind": kind, **changes.pop("objective", {})},
        augmentation=None,
        epochs=changes.pop("epochs", 3),
        optimizer={"lr": 0.1},
        **changes,
    )


def taught(recipe: Distill, teacher: Path, workdir: Path) -> tuple[DistillResult, list[Epoch]]:
    workdir.mkdir(exist_ok=True)
    events = list(distill(recipe, load_checkpoint(teacher), workdir, device="cpu", data_dir=workdir))
    assert isinstance(events[-1], Finished)
    assert isinstance(events[-1].result, DistillResult)
    return events[-1].result, [event for event in events if isinstance(event, Epoch)]


@pytest.mark.parametrize("kind", ["kd", "dkd", "ikl-kd", "gkl-kd"])
def test_a_student_learns(kind: str, teacher: Path, tmp_path: Path) -> None:
    result, epochs = taught(student(kind, teacher), teacher, tmp_path)
    assert result.clean_accuracy > 0.7
    assert epochs[-1].loss < epochs[0].loss
    assert sum(epochs[-1].terms.values()) == pytest.approx(epochs[-1].loss)
    assert result.teacher_accuracy > 0.85
    assert result.teacher_sha256 == load_checkpoint(teacher).sha256
    assert result.extra_parameters == 0
    assert result.seconds_per_iteration > 0
    assert load_checkpoint(tmp_path / "model.safetensors").sha256 == result.checkpoint_sha256


def test_the_teacher_stays_as_it_is(teacher: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(teacher)
    loaded.model.train()  # as a careless caller leaves it
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    list(distill(student("gkl-kd", teacher, epochs=1), loaded, tmp_path, device="cpu", data_dir=tmp_path))
    assert not loaded.model.training
    for name, value in loaded.model.state_dict().items():
        close(value, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("prior", ["previous-epoch", "teacher"])
def test_a_stopped_run_goes_on_to_the_same_weights(prior: str, teacher: Path, tmp_path: Path) -> None:
    recipe = student("gkl-kd", teacher, objective={"prior": prior})
    whole, _ = taught(recipe, teacher, tmp_path / "whole")
    (tmp_path / "parts").mkdir()
    events = distill(recipe, load_checkpoint(teacher), tmp_path / "parts", device="cpu", data_dir=tmp_path)
    for event in events:
        if isinstance(event, Epoch) and event.epoch == 2:
            break
    for _ in range(4):
        next(events)  # into the third epoch
    events.close()
    parts, _ = taught(recipe, teacher, tmp_path / "parts")
    assert parts.checkpoint_sha256 == whole.checkpoint_sha256


def test_the_teachers_prior_is_there_from_the_first_epoch(teacher: Path, tmp_path: Path) -> None:
    recipe = student("ikl-kd", teacher, objective={"prior": "teacher", "prior_temperature": 1.0}, epochs=1)
    events = list(distill(recipe, load_checkpoint(teacher), tmp_path, device="cpu", data_dir=tmp_path))
    phases = [event.phase for event in events if event.kind == "progress"]
    assert phases[0] == "class prior"
    follows = student("ikl-kd", teacher, objective={"prior_temperature": 1.0}, epochs=1)
    other, _ = taught(follows, teacher, tmp_path / "follows")
    assert other.checkpoint_sha256 != events[-1].result.checkpoint_sha256  # type: ignore[union-attr]


def test_parts_of_a_batch_teach_what_the_whole_does() -> None:
    torch.manual_seed(0)
    x, y = torch.rand(7, 3).double(), torch.arange(7) % 4
    teacher = Lookup(torch.randn(4, 3).double(), torch.zeros(4).double())
    gradients = []
    for micro_batch in (None, 3):
        recipe = Distill(
            dataset="digits", model={"kind": "cnn"}, teacher={"checkpoint": "0" * 64}, epochs=1,
            objective=GKLKD(gamma=0.3, prior="none"), optimizer={"lr": 1.0, "momentum": 0, "weight_decay": 0},
        )  # fmt: skip
        model = nn.Linear(3, 4).double()
        nn.init.ones_(model.weight)
        nn.init.zeros_(model.bias)
        method = Teaching(recipe, teacher, classes=4, device="cpu")
        optimizer = torch.optim.SGD(model.parameters(), 1.0)
        method.update(Network(model, model, model), optimizer, Shown(20, 0, x, y), micro_batch=micro_batch)
        gradients.append(model.weight.data)
    close(gradients[1], gradients[0], rtol=1e-12, atol=1e-12)


def test_robust_distillation_meets_the_threat(teacher: Path, tmp_path: Path) -> None:
    robust = {
        "threat": {"norm": "Linf", "eps": 0.1},
        "attack": {"loss": "kl", "steps": 3, "eps_schedule": "constant"},
        "validation": {"images": 100},
    }
    result, epochs = taught(student("ikl-kd", teacher, **robust), teacher, tmp_path / "robust")
    assert epochs[-1].adversarial_accuracy is not None
    assert epochs[-1].eps == pytest.approx(0.1)
    plain, _ = taught(student("ikl-kd", teacher, validation={"images": 100}), teacher, tmp_path / "plain")
    assert plain.validation_robust_accuracy is None
    assert result.validation_robust_accuracy is not None


def test_a_loss_that_is_not_finite_stops_before_the_step() -> None:
    model = nn.Linear(3, 4)
    model.weight.data.fill_(torch.inf)
    recipe = student_of_nothing()
    method = Teaching(recipe, Lookup(torch.zeros(4, 3), torch.zeros(4)), classes=4, device="cpu")
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    before = model.bias.clone()
    shown = Shown(1, 0, torch.rand(2, 3), torch.tensor([0, 1]))
    with pytest.raises(FloatingPointError, match="loss is nan"):
        method.update(Network(model, model, model), optimizer, shown, micro_batch=None)
    close(model.bias, before)


def student_of_nothing() -> Distill:
    return Distill(
        dataset="digits",
        model={"kind": "cnn"},
        teacher={"checkpoint": "0" * 64},
        epochs=1,
        objective={"kind": "kd"},
    )


def test_a_teacher_of_other_classes_is_refused(teacher: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(teacher)
    loaded = type(loaded)(**{**vars(loaded), "classes": 100})
    with pytest.raises(ValueError, match=r"has 100 classes, digits has 10"):
        next(distill(student("kd", teacher), loaded, tmp_path, device="cpu", data_dir=tmp_path))
