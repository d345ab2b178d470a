"""What may be said about which model to judge, and what is answered to mistakes before any work."""

import json
from typing import Any

import pytest

from dkl import zoo_names
from dkl.catalog import resolve
from dkl.documents import Normalisation
from dkl.explain import InvalidRecipeError
from dkl.protocols import Evaluate, Function, Zoo
from dkl.recipes import RECIPE

SHA256 = "a" * 64


def judging(source: Any, name: str = "autoattack-cifar10-linf") -> Evaluate:
    recipe = resolve(name, {"model": source})
    assert isinstance(recipe, Evaluate)
    return recipe


@pytest.mark.parametrize(
    "source",
    [
        {"job": "0" * 12},
        {"checkpoint": SHA256, "preprocessing": {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}},
        {"zoo": "cifar10/Linf/Cui2023Decoupled_WRN-34-10"},
        {"timm": "resnet18.a1_in1k"},
        {"function": "my.models:net"},
    ],
)
def test_every_source_survives_json(source: dict[str, Any]) -> None:
    recipe = judging(source)
    assert RECIPE.validate_json(recipe.model_dump_json()) == recipe
    assert json.loads(recipe.model_dump_json(exclude_none=True))["model"] == source


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ({}, 'model: say which model to judge: {"job": JOB_ID}'),
        ({"checkpoint": SHA256, "x": 1}, "model.x: is no field here; the fields are checkpoint, preprocessing"),
        ({"checkpoint": SHA256, "job": "0" * 12}, "model.checkpoint: is no field here"),
        ({"timm": "../weights"}, "model.timm: '../weights' is no timm name"),
        ({"timm": "local-dir:/etc"}, "model.timm: 'local-dir:/etc' is no timm name"),
        ({"function": "net"}, "model.function: 'net' names no function; write MODULE:NAME"),
        ({"function": "a/b:net"}, "model.function: 'a/b:net' names no function"),
    ],
)
def test_a_mistake_is_named_with_its_place(source: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRecipeError) as caught:
        judging(source)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("preprocessing", "sentence"),
    [
        ({"mean": [125.3], "std": [63.0]}, "model.preprocessing: mean [125.3] is not of pixels in [0, 1]; divide"),
        ({"mean": [0.5], "std": [0.2, 0.2]}, "model.preprocessing: found 1 means and 2 stds"),
        ({"mean": [], "std": []}, "model.preprocessing: found 0 means and 0 stds"),
        ({"mean": [0.5], "std": [0]}, "model.preprocessing.std.0: must be greater than 0, found 0"),
        ({"mean": [0.5]}, "model.preprocessing.std: is missing"),
    ],
)
def test_preprocessing_that_cannot_be_meant(preprocessing: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRecipeError) as caught:
        judging({"checkpoint": SHA256, "preprocessing": preprocessing})
    assert str(caught.value).startswith(sentence)


def test_normalisation_is_a_value() -> None:
    assert Normalisation(mean=(0.5,), std=(0.2,)) == Normalisation.model_validate({"mean": [0.5], "std": [0.2]})


# --- the zoo's names --------------------------------------------------------------------------------------


def test_the_zoo_has_as_many_models_as_robustbench_publishes() -> None:
    known, without_weights = zoo_names._lists()
    boards: dict[str, int] = {}
    for model in known.values():
        boards[f"{model.dataset}/{model.threat}"] = boards.get(f"{model.dataset}/{model.threat}", 0) + 1
    assert boards == {
        "cifar10/Linf": 76,
        "cifar10/L2": 21,
        "cifar10/corruptions": 17,
        "cifar100/Linf": 38,
        "cifar100/corruptions": 12,
        "imagenet/Linf": 30,
        "imagenet/corruptions": 12,
    }
    assert len(known) + len(without_weights) == 236
    assert zoo_names.find("cifar100/Linf/Cui2023Decoupled_WRN-28-10").architecture == "WideResNet-28-10"


@pytest.mark.parametrize(
    ("name", "offered"),
    [
        ("cifar10/Linf/Wang2023Better_WRN-28-1", "did you mean cifar10/Linf/Wang2023Better_WRN-28-10"),
        ("wang2023better_wrn-28-10", "cifar100/Linf/Wang2023Better_WRN-28-10"),
        ("cifar10/linf/cui2023decoupled_wrn-34-10", "did you mean cifar10/Linf/Cui2023Decoupled_WRN-34-10"),
        ("cifar10/Linf/Cui2023", "did you mean cifar10/Linf/Cui2023Decoupled_WRN-28-10 or cifar10"),
        ("Carmon2019Unlabelled", "did you mean cifar10/Linf/Carmon2019Unlabeled"),
        ("x", "write DATASET/THREAT/NAME"),
        ("", "write DATASET/THREAT/NAME"),
    ],
)
def test_an_unknown_zoo_name_offers_the_closest(name: str, offered: str) -> None:
    with pytest.raises(InvalidRecipeError, match="unknown zoo model") as caught:
        judging({"zoo": name})
    assert offered in str(caught.value)


def test_a_name_without_weights_is_told_apart() -> None:
    with pytest.raises(InvalidRecipeError, match="its weights are not in the model zoo"):
        judging({"zoo": "cifar10/Linf/Madry2018Towards"})


def test_a_zoo_model_is_not_judged_on_other_classes() -> None:
    with pytest.raises(InvalidRecipeError, match=r"cifar10 has 10 classes, the zoo model .* tells 100 apart"):
        judging({"zoo": "cifar100/Linf/Cui2023Decoupled_WRN-28-10"})
    own = resolve(
        "autoattack-cifar10-linf", {"dataset": "npz:mine", "model.zoo": "imagenet/Linf/Salman2020Do_R50"}
    )
    assert isinstance(own, Evaluate)
    assert own.model == Zoo(zoo="imagenet/Linf/Salman2020Do_R50")


def test_the_refusal_names_the_way_out() -> None:
    assert "dklbench run RECIPE --model my.models:net" in Function(function="my.models:net").refusal
