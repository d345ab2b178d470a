"""Networks and objectives of installed packages: what they are asked, what is said where they break their word."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dkl import plugins
from dkl.architectures import PluginModel
from dkl.catalog import resolve
from dkl.engine import run
from dkl.explain import InvalidRecipeError
from dkl.models import build
from dkl.objectives import PGD, PluginObjective
from dkl.plugins import PluginError
from dkl.terms import attacked_loss, robust_terms
from dkl.weights import CheckpointError, load_checkpoint, save_checkpoint

CODE = """
from dataclasses import dataclass
from pydantic import BaseModel, PositiveInt
from torch import nn
from torch.nn.functional import cross_entropy

class Linear(BaseModel):
    width: PositiveInt = 4
    def build(self, *, channels, classes):
        if self.width > 99:
            raise ValueError("100 is too wide; ask for less")
        return nn.Sequential(nn.AdaptiveAvgPool2d(self.width), nn.Flatten(),
                             nn.Linear(channels * self.width**2, classes))

@dataclass(frozen=True)
class Half:
    weight: float = 0.5
    def loss(self, logits_nat, logits_adv, y):
        return self.weight * cross_entropy(logits_nat, y) + self.weight * cross_entropy(logits_adv, y)

class Named(Half):
    def loss(self, logits_nat, logits_adv, y):
        return {"clean": cross_entropy(logits_nat, y), "attacked": cross_entropy(logits_adv, y)}
    def attacked(self, logits_nat, logits_adv, y):
        return (logits_adv - logits_nat).square().sum(dim=1).mean()

class PerImage(Half):
    def loss(self, logits_nat, logits_adv, y):
        return cross_entropy(logits_adv, y, reduction="none")

class Broken:
    def build(self, *, channels, classes):
        return nn.Linear(undefined, classes)

class NoNetwork:
    def build(self, *, channels, classes):
        return "no network"

class Nothing:
    pass

number = 3
"""
MODELS = {"linear": "Linear", "broken": "Broken", "text": "NoNetwork", "nothing": "Nothing", "number": "number"}
OBJECTIVES = {"half": "Half", "named": "Named", "per-image": "PerImage"}


def write_package(folder: Path, name: str, code: str, *, module: str) -> None:
    """What pip leaves of a package, as far as it matters."""
    folder.mkdir(exist_ok=True)
    (folder / f"{module}.py").write_text(code)
    about = folder / f"{name.replace('-', '_')}-1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    groups = {"dklbench.models": {**MODELS, "absent": "Absent"}, "dklbench.objectives": OBJECTIVES}
    lines = [
        line
        for group, offers in groups.items()
        for line in (f"[{group}]", *(f"{offer} = {module}:{made}" for offer, made in offers.items()))
    ]
    (about / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the package my-plugins is installed."""
    write_package(tmp_path / "site", "my-plugins", CODE, module="my_plugins_code")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    plugins._configured.cache_clear()
    return tmp_path / "site"


def network(name: str, **arguments: Any) -> nn.Module:
    return build(PluginModel(name=name, arguments=arguments), channels=1, classes=10)


def objective(name: str, **arguments: Any) -> PluginObjective:
    return PluginObjective(name=name, arguments=arguments)


# --- networks ---------------------------------------------------------------------------------------------


def test_a_network_is_built_with_the_recipes_arguments() -> None:
    assert network("linear")(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    assert sum(p.numel() for p in network("linear", width=2).parameters()) == 50
    assert network("linear").training


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        (
            "linaer",
            {},
            r"no installed package offers the model 'linaer'; known are .*linear.*; install the package",
        ),
        ("linear", {"width": 0}, "arguments of the model 'linear': width: Input should be greater than 0"),
        ("linear", {"wide": 3}, "model 'linear': there is no 'wide'; the arguments are width"),
        ("linear", {"width": 100}, "'linear' of my-plugins 1.2 cannot be built: ValueError: 100 is too wide"),
        (
            "broken",
            {},
            r"cannot be built: NameError: name 'undefined' is not defined \(my_plugins_code.py, line 33\)",
        ),
        ("text", {}, "builds a str; let build return an nn.Module"),
        ("nothing", {}, "'nothing' of my-plugins 1.2 has no method build; see docs/plugins.md"),
        ("nothing", {"a": 1}, r"arguments of the model 'nothing': .*takes no arguments"),
        ("number", {}, "'number' of my-plugins 1.2 is a int; let it be a class"),
        ("absent", {}, r"cannot be imported: AttributeError: .*'Absent'"),
    ],
)
def test_networks_that_cannot_be_had(name: str, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PluginError, match=sentence):
        network(name, **arguments)


def test_two_packages_that_offer_the_same(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_package(tmp_path / "more", "other-plugins", CODE, module="other_plugins_code")
    monkeypatch.syspath_prepend(str(tmp_path / "more"))
    with pytest.raises(
        PluginError, match=r"several packages offer .*: my-plugins 1\.2, other-plugins 1\.2; uninst"
    ):
        network("linear")


def test_a_checkpoint_names_its_package(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, path = PluginModel(name="linear", arguments={"width": 2}), tmp_path / "model.safetensors"
    made = network("linear", width=2)
    save_checkpoint(path, made, architecture=asked, channels=1, classes=10, dataset="digits")
    loaded = load_checkpoint(path)
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(loaded.model(x), made(x))
    assert (loaded.architecture, loaded.packages) == ("linear", ("my-plugins",))
    (package / "my_plugins-1.2.dist-info" / "entry_points.txt").unlink()
    with pytest.raises(
        CheckpointError, match=r"needs the plugin 'linear' of the package my-plugins: no installed"
    ):
        load_checkpoint(path)


# --- objectives -------------------------------------------------------------------------------------------

NAT, ADV, Y = torch.randn(6, 10), torch.randn(6, 10, requires_grad=True), torch.arange(6)


def test_a_loss_is_a_scalar_or_several_by_name() -> None:
    [(name, loss)] = robust_terms(objective("half"), NAT, ADV, Y, None, None).items()
    ce = torch.nn.functional.cross_entropy
    assert name == "half"
    torch.testing.assert_close(loss, (ce(NAT, Y) + ce(ADV, Y)) / 2)
    terms = robust_terms(objective("named"), NAT, ADV, Y, None, None)
    torch.testing.assert_close(terms, {"clean": ce(NAT, Y), "attacked": ce(ADV, Y)})


def test_the_attack_climbs_what_the_objective_says_or_its_loss() -> None:
    attack = PGD(loss="objective")
    climbed = attacked_loss(attack, NAT, ADV, Y, None, objective("named"))
    torch.testing.assert_close(climbed, (ADV - NAT).square().sum())
    loss = robust_terms(objective("half", weight=2.0), NAT, ADV, Y, None, None)["half"]
    torch.testing.assert_close(attacked_loss(attack, NAT, ADV, Y, None, objective("half", weight=2.0)), 6 * loss)


def test_a_loss_of_each_image_is_refused() -> None:
    with pytest.raises(PluginError, match=r"returns a tensor \(6,\) of torch.float32; let it return a scalar"):
        robust_terms(objective("per-image"), NAT, ADV, Y, None, None)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"attack": None}, "the objective 'plugin' needs attack"),
        ({"attack.loss": "ikl"}, "with 'plugin' take 'objective'"),
        ({"objective": {"kind": "plugin", "name": "../x"}}, "objective.name: String should match pattern"),
        (
            {"objective": {"kind": "trades"}, "attack.loss": "objective"},
            "is for objectives of plugins; with 'trades'",
        ),
    ],
)
def test_recipes_that_make_no_sense(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRecipeError, match=sentence):
        resolve("trades-digits", {"objective": {"kind": "plugin", "name": "half"}, **changes})


def test_both_train_and_a_run_that_is_resumed_is_the_same(tmp_path: Path) -> None:
    changes = {
        "model": {"kind": "plugin", "name": "linear", "arguments": {"width": 8}},
        "objective": {"kind": "plugin", "name": "named"},
        **{"attack.loss": "objective", "attack.steps": 1, "epochs": 2, "images": 256},
    }
    recipe = resolve("trades-digits", changes)
    about: dict[str, Any] = {"device": "cpu", "data_dir": tmp_path, "fetch": None}
    whole = list(run(recipe, tmp_path / "whole", **about))
    stopped = run(recipe, tmp_path / "stopped", **about)
    for event in stopped:
        if event.kind == "epoch":
            stopped.close()
            break
    resumed = list(run(recipe, tmp_path / "stopped", **about))
    assert resumed[-1].result.checkpoint_sha256 == whole[-1].result.checkpoint_sha256
    assert whole[-1].result.provenance.versions["my-plugins"] == "1.2"
    assert set(next(event for event in whole if event.kind == "epoch").terms) == {"clean", "attacked"}
