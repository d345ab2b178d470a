"""benchmarks/distill_step.py and gpu.sh distillation: what is measured, and what would run, are recipes."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from dkl import distillation
from dkl.architectures import CNN, Model, ThinResNet
from dkl.catalog import RECIPES, parse_overrides, resolve
from dkl.recipes import Distill, Train

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.parametrize("gamma", [0.0, 0.6, 1.0])
def test_the_form_over_pairs_of_classes_is_ours(gamma: float) -> None:
    from reference_kd import pairwise_gkl_kd

    random = torch.Generator().manual_seed(0)
    student_BK, teacher_BK, raw_BK = torch.randn(3, 7, 11, dtype=torch.float64, generator=random)
    weights = {"gamma": gamma, "wmse_weight": 8.0, "ce_weight": 2.0, "temperature": 4.0}
    found = []
    for loss in (distillation.gkl_kd, pairwise_gkl_kd):
        student = student_BK.clone().requires_grad_()
        value = loss(student, teacher_BK, raw_BK.softmax(1), **weights)
        found.append((value.detach(), *torch.autograd.grad(value, student)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-14)


def test_every_objective_takes_its_turn() -> None:
    from distill_step import METHODS, contest, contestant, random_data, the_recipe

    pair, data = "resnet56-resnet20", random_data(200, 2, "cpu")
    tiny: Model = ThinResNet(depth=8)
    entered = [
        contestant(method, the_recipe(method, pair, model=tiny.model_dump(), batch_size=2), tiny, data, "cpu")
        for method in METHODS
    ]
    numbers = contest(entered, data, "cpu", rounds=1)
    assert {"ikl_kd_over_kd", "gkl_kd_over_kd", "dkd_over_kd", "reviewkd_over_kd"} <= set(numbers)
    assert numbers["ikl_kd_over_kd"] == pytest.approx(
        numbers["seconds"]["ikl-kd"] / numbers["seconds"]["kd"], rel=0.02
    )
    extra = numbers["extra_parameters"]
    assert [method for method in METHODS if extra[method]] == ["ofd", "crd", "reviewkd"]
    json.dumps(numbers)


def test_all_start_from_one_student_with_the_papers_weights() -> None:
    from distill_step import contestant, random_data, the_recipe, the_teacher

    assert the_teacher("resnet32x4-resnet8x4") == resolve("natural-cifar100-resnet32x4", {}).model
    recipe = the_recipe("gkl-kd", "resnet32x4-resnet8x4", batch_size=16)
    assert recipe.objective == RECIPES["gkl-kd-cifar100-resnet32x4-resnet8x4"].recipe.objective
    data = random_data(100, 2, "cpu")
    tiny = recipe.model_copy(update={"model": CNN(width=2), "batch_size": 2})
    students = []
    for objective in (recipe.objective, the_recipe("kd", "resnet32x4-resnet8x4").objective):
        made = contestant("any", tiny.model_copy(update={"objective": objective}), CNN(width=4), data, "cpu")
        students.append(made.step.args[0].model.state_dict())  # type: ignore[attr-defined]
    for name, value in students[0].items():
        torch.testing.assert_close(value, students[1][name], rtol=0, atol=1e-3)  # after one small step


needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@needs_bash
def test_what_gpu_sh_distils_are_recipes_as_published() -> None:
    command = [BENCHMARKS / "gpu.sh", "distillation-recipes"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    teachers, students = [], []
    for line in said.splitlines():
        name, *changes = line.split()
        if name.startswith("natural-"):
            teachers.append(resolve(name, parse_overrides(changes)))
        else:
            overrides = {**parse_overrides(changes), "teacher": {"checkpoint": "0" * 64}}
            students.append(resolve(name, overrides))
    assert all(isinstance(recipe, Train) and recipe.epochs == 240 for recipe in teachers)
    assert [(recipe.model.depth, recipe.model.width) for recipe in teachers] == [(32, 4), (56, 1)]
    assert all(isinstance(recipe, Distill) for recipe in students)
    assert {(recipe.epochs, recipe.dataset, recipe.keep_teacher) for recipe in students} == {
        (240, "cifar100", True)
    }
    assert [recipe.objective.kind for recipe in students] == 2 * ["kd", "dkd", "ikl-kd", "gkl-kd"]
    assert [(recipe.model.depth, recipe.model.width) for recipe in students] == 4 * [(8, 4)] + 4 * [(20, 1)]
