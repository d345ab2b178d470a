"""benchmarks/train_step.py and gpu.sh: what is measured is one computation, and what would run are recipes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dkl import losses
from dkl.architectures import PreActResNet, WideResNet
from dkl.catalog import parse_overrides, resolve
from dkl.protocols import Evaluate
from dkl.recipes import Train

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_the_reference_loss_is_ours() -> None:
    from reference_step import pairwise_ikl

    nat_BK, adv_BK, raw_BK = torch.randn(3, 7, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = {"wmse_weight": 20.0, "ce_weight": 5.0}
    ours, theirs = (loss(nat_BK, adv_BK, raw_BK.softmax(1), **weights) for loss in (losses.ikl, pairwise_ikl))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


@pytest.mark.parametrize("classes", [10, 100])
def test_one_step_of_the_reference_is_one_of_ours(classes: int) -> None:
    from step_contestants import Setting
    from train_step import compare

    found = compare(Setting(WideResNet(depth=10, width=1), 4, classes), "cpu", torch.float64)
    assert found["weight_change"] > 1e-3
    assert found["weight_difference"] < 1e-12
    assert found["loss_difference"] < 1e-12


def test_the_numbers_of_the_last_line() -> None:
    from step_contestants import Setting
    from train_step import contest, summary

    settings = [Setting(WideResNet(depth=10, width=1), 2, classes) for classes in (10, 100)]
    own = ["float32", "bfloat16"]
    results = [(setting, contest(setting, "cpu", rounds=1, own=own)) for setting in settings]
    numbers = summary(results, ceiling_tflops=1.0)
    assert {"ratio_k10", "ratio_k100", "ratio_k10_bf16", "ratio_k100_bf16"} <= set(numbers)
    reference, float32 = (results[1][1]["seconds"][name] for name in ("reference", "float32"))
    assert numbers["ratio_k100"] == pytest.approx(reference / float32, rel=0.02)
    assert numbers["max_weight_difference"] < 1e-12
    assert numbers["disagreements"] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
def test_the_peak_memory_of_the_losses() -> None:
    def megabytes(form: str) -> float:
        command = [sys.executable, BENCHMARKS / "loss_alone.py", form, "--classes", "200", "--repeats", "1"]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return json.loads(said)["megabytes"]

    square = 128 * 200 * 200 * 4 / 1e6  # of one float per image and pair of classes
    assert 3 * square < megabytes("pairs") < 8 * square
    assert megabytes("ours") < square / 2


needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@needs_bash
def test_what_gpu_sh_runs_are_recipes_of_equal_budget() -> None:
    said = subprocess.run([BENCHMARKS / "gpu.sh", "recipes"], check=True, capture_output=True, text=True).stdout
    *trainings, judge = (_resolved(line) for line in said.splitlines())
    assert [training.objective.kind for training in trainings] == ["trades", "ikl", "gkl"]
    budget = trainings[0].model_copy(update={"objective": None})
    for training in trainings:
        assert isinstance(training, Train)
        assert training.model_copy(update={"objective": None}) == budget
    assert (budget.model, budget.dataset, budget.images) == (PreActResNet(), "cifar10", None)
    assert budget.epochs >= 30
    assert isinstance(judge, Evaluate)
    assert (judge.threat, judge.images, judge.policy) == (budget.threat, 1000, "exact")


def _resolved(line: str) -> Train | Evaluate:
    name, *changes = line.split()
    overrides = parse_overrides(changes)
    if name.startswith("autoattack-"):
        overrides["model"] = {"checkpoint": "0" * 64}
    return resolve(name, overrides)


@needs_bash
def test_gpu_sh_says_how_it_is_used() -> None:
    run = subprocess.run([BENCHMARKS / "gpu.sh"], check=False, capture_output=True, text=True)
    assert run.returncode == 2
    assert "benchmarks/gpu.sh training DATA_DIR" in run.stderr
