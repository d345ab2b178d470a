"""Commands that make a result again ask for exactly what was asked then."""

import shlex
from typing import Any

import pytest

from dkl.catalog import parse_overrides, resolve
from service.tables import Job
from service.web.reproduction import commands_of

URL = "https://bench.example.org"


def job(name: str, overrides: dict[str, Any], job_id: str = "0123456789ab") -> Job:
    recipe = resolve(name, overrides)
    return Job(id=job_id, kind=recipe.kind, name=name, recipe=recipe.model_dump(mode="json"))


def typed(line: str) -> list[str]:
    """The words that a shell makes of it."""
    return shlex.split(line.replace("\\\n", " "))


def commands(judged: Job, trained: Job | None = None) -> dict[str, list[str]]:
    return {command.about: typed(command.line) for command in commands_of(judged, trained, URL)}


MODEL = {"model.job": "abcdefabcdef"}


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("autoattack-digits-linf", MODEL),
        ("autoattack-digits-linf", {**MODEL, "images": None, "curve": [0.1, 0.05], "policy": "audited"}),
        ("autoattack-cifar10-linf", {**MODEL, "suite": [{"kind": "square", "queries": 7}], "threat.eps": "4/255"}),
        (
            "autoattack-cifar10-linf",
            {"model": {"job": "abcdefabcdef", "preprocessing": {"mean": [0.1], "std": [2]}}},
        ),
        ("autoattack-cifar10-linf", {"model.zoo": "cifar10/Linf/Wang2023Better_WRN-28-10"}),
        ("corruptions-cifar10", {**MODEL, "images": 100}),
    ],
)
def test_the_evaluation_is_asked_for_again(name: str, overrides: dict[str, Any]) -> None:
    judged = job(name, overrides)
    found = commands(judged)
    assert found["Run it again here, and compare every number"] == ["dklbench", "replay", judged.id, "--url", URL]
    words = found["Judge the same model again here"]
    assert words[:3] == ["dklbench", "submit", name]
    assert words[-2:] == ["--url", URL]
    assert resolve(name, parse_overrides(words[3:-2])).model_dump(mode="json") == judged.recipe
    words = found["Judge it on your own machine"]
    assert words[:3] == ["dklbench", "run", name]
    option = words.index("--zoo" if "model.zoo" in overrides else "--checkpoint")
    here = {"model": {"job": "abcdefabcdef"}} | parse_overrides(words[3:option])
    elsewhere = judged.recipe | {"model": judged.recipe["model"] | {"job": "abcdefabcdef"}}
    if "model.zoo" not in overrides:
        assert resolve(name, here).model_dump(mode="json") == elsewhere


def test_the_training_is_asked_for_again_with_its_evaluation() -> None:
    changes = {"epochs": 2, "threat.eps": "4/255", "model": {"kind": "cnn", "width": 8}, "seed": 3}
    trained, judged = job("ikl-at-digits", changes), job("autoattack-digits-linf", {**MODEL, "images": 50})
    found = commands(judged, trained)
    words = found["Train it again here, and judge it"]
    option = words.index("--then")
    assert words[option + 1] == "autoattack-digits-linf images=50"
    for overrides in (words[3:option], found["Train it on your own machine"][3:]):
        assert resolve("ikl-at-digits", parse_overrides(overrides)).model_dump(mode="json") == trained.recipe


def test_what_no_named_recipe_gives_is_replayed_only() -> None:
    own = job("autoattack-digits-linf", MODEL)
    own.name = None
    old = job("autoattack-digits-linf", MODEL)
    old.recipe = {**old.recipe, "field_of_once": 1}
    upload = Job(id="0" * 12, kind="import", name=None, recipe={})
    for judged in (own, old):
        assert list(commands(judged, upload)) == ["Run it again here, and compare every number"]
