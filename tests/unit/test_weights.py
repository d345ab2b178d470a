"""Averages and AWP against the reference's numbers; files that are whole, deterministic, or refused."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from golden import TinyNet, assert_state, entry, of_kind, tensor
from torch.nn.functional import cross_entropy

from dkl import recipes
from dkl.losses import gkl, ikl, kl
from dkl.models import build
from dkl.weights import (
    CheckpointError,
    average,
    awp_direction,
    load_average,
    load_checkpoint,
    load_state,
    perturbed,
    save_checkpoint,
    save_state,
)

# --- averaging --------------------------------------------------------------------------------------------


def test_golden_average_over_epochs():
    e = entry("pub-epoch-ema")
    averaged = None
    for checkpoint in e["checkpoints"]:
        state = {name: tensor(value) for name, value in checkpoint.items()}
        state["bn.num_batches_tracked"] = state["bn.num_batches_tracked"].long()
        averaged = average(averaged, state, e["hyper"]["tau"])
    for name, value in e["result"].items():
        torch.testing.assert_close(averaged[name], tensor(value), rtol=1e-12, atol=0)


def test_an_average_loads_into_the_model_with_its_counts_rounded():
    model = build(recipes.CNN(width=2), channels=1, classes=3)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    other = {name: value + 7 for name, value in state.items()}
    load_average(model, average(average(None, state, 0.9), other, 0.9))
    torch.testing.assert_close(model.conv1.weight.detach(), state["conv1.weight"] + 0.7)
    assert model.bn1.num_batches_tracked == 1  # 0.7, rounded
    assert model.bn1.num_batches_tracked.dtype == torch.int64


def test_an_average_is_not_changed_by_further_training():
    model = build(recipes.CNN(width=2), channels=1, classes=3)
    averaged = average(None, model.state_dict(), 0.9)
    before = averaged["conv1.weight"].clone()
    with torch.no_grad():
        model.conv1.weight.add_(1)
    assert torch.equal(averaged["conv1.weight"], before)


# --- adversarial weight perturbation ----------------------------------------------------------------------


def awp_case(name: str):
    """The golden entry, its network in training mode, and the loss of logits_nat and logits_adv it ascends."""
    e = entry(name)
    hyper, y, prior = e["hyper"], torch.tensor(e["target"]), tensor(e["class_scores"])

    def loss(nat, adv):
        match e["formula"]:
            case "AWP_v1":
                robust = ikl(nat, adv, prior, wmse_weight=hyper["beta"], ce_weight=hyper["alpha"])
            case "AWP_v2":
                weights = {"wmse_weight": hyper["beta"], "ce_weight": hyper["alpha"]}
                robust = gkl(nat, adv, prior, gamma=hyper["gamma"], **weights)
            case "AWP_trades_kl":
                robust = hyper["beta"] * kl(nat, adv)
        return cross_entropy(nat, y) + robust

    return e, TinyNet(e["initial_state"]).train(), loss


@pytest.mark.parametrize("name", of_kind("awp"))
def test_every_golden_awp_step(name):
    e, model, loss = awp_case(name)
    x, x_adv = tensor(e["inputs_clean"]), tensor(e["inputs_adv"])
    gamma = e["hyper"]["gamma_awp"]
    optimizer = torch.optim.SGD(model.parameters(), **e["hyper"]["sgd"])

    def loss_of(forward):
        if e["formula"] == "AWP_at_ce":
            return cross_entropy(model(x_adv), torch.tensor(e["target"]))
        return forward()

    direction = awp_direction(model, lambda: loss_of(lambda: loss(model(x), model(x_adv))))
    assert direction.keys() == e["diff"].keys()
    for weight, expected in e["diff"].items():
        torch.testing.assert_close(direction[weight], tensor(expected), rtol=1e-10, atol=1e-10)
    assert_state(model, e["initial_state"], tolerance=0)
    assert all(p.grad is None for p in model.parameters())

    def adversarial_first():
        adv = model(x_adv)
        return loss(model(x), adv)

    with perturbed(model, direction, gamma):
        assert_state(model, e["perturbed_state"])
        train_loss = loss_of(adversarial_first)
        torch.testing.assert_close(train_loss, tensor(e["train_loss_on_perturbed"]), rtol=1e-10, atol=0)
        train_loss.backward()
        optimizer.step()
    assert_state(model, e["state_after_sgd_step_and_restore"])


def test_awp_leaves_biases_and_batch_norm_alone():
    model = build(recipes.WideResNet(depth=10, width=1), channels=1, classes=3)
    direction = awp_direction(model, lambda: model(torch.rand(4, 1, 8, 8)).square().sum())
    assert all(name.endswith("weight") and "bn" not in name for name in direction)
    assert {"conv1.weight", "fc.weight"} < direction.keys()
    for name, shift in direction.items():
        torch.testing.assert_close(shift.norm(), model.get_parameter(name).detach().norm(), rtol=1e-4, atol=0)


def test_weights_are_restored_when_the_update_fails():
    _, model, _ = awp_case("pub-awp-v1")
    x = torch.rand(4, 3, 2, 2, dtype=torch.float64)
    before = model.fc1.weight.detach().clone()
    direction = awp_direction(model, lambda: model(x).square().sum())
    with pytest.raises(FloatingPointError), perturbed(model, direction, 0.5):
        raise FloatingPointError
    torch.testing.assert_close(model.fc1.weight.detach(), before, rtol=1e-14, atol=1e-14)


def test_a_zero_gradient_perturbs_nothing():
    model = build(recipes.CNN(width=2), channels=1, classes=3)
    direction = awp_direction(model, lambda: 0 * model(torch.rand(4, 1, 8, 8)).sum())
    assert all((shift == 0).all() for shift in direction.values())


# --- checkpoints ------------------------------------------------------------------------------------------

WRN = recipes.WideResNet(depth=10, width=1, activation="silu")
ABOUT = {"architecture": WRN, "channels": 1, "classes": 3, "dataset": "npz:mine"}


def saved(path, seed: int = 0):
    torch.manual_seed(seed)
    model = build(WRN, channels=1, classes=3)
    return model, save_checkpoint(path, model, **ABOUT)


def test_a_checkpoint_comes_back_as_the_same_network(tmp_path):
    path = tmp_path / "model.safetensors"
    model, sha256 = saved(path)
    loaded = load_checkpoint(path)
    assert sha256 == loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (loaded.architecture, loaded.channels, loaded.classes, loaded.dataset) == (
        "WRN-10-1-SiLU",
        1,
        3,
        "npz:mine",
    )
    assert not loaded.model.training
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(loaded.model(x), model.eval()(x))
    assert all(p.requires_grad for p in loaded.model.parameters())
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_loading_draws_no_random_numbers(tmp_path):
    saved(tmp_path / "model.safetensors")
    before = torch.get_rng_state()
    load_checkpoint(tmp_path / "model.safetensors")
    assert torch.equal(torch.get_rng_state(), before)


def test_equal_weights_are_equal_bytes_in_every_process(tmp_path):
    _, expected = saved(tmp_path / "model.safetensors")
    script = (
        "import sys, torch; from pathlib import Path; from dkl import recipes; from dkl.models import build\n"
        "from dkl.weights import save_checkpoint\n"
        "wrn = recipes.WideResNet(depth=10, width=1, activation='silu'); torch.manual_seed(0)\n"
        "model = build(wrn, channels=1, classes=3).to(memory_format=torch.channels_last)\n"
        "print(save_checkpoint(Path(sys.argv[1]), model, architecture=wrn, channels=1, classes=3, "
        "dataset='npz:mine'))"
    )
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", script, str(tmp_path / "other.safetensors")]
        printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        assert printed.strip() == expected
    assert saved(tmp_path / "third.safetensors", seed=1)[1] != expected


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    _, sha256 = saved(path)
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        saved(path, seed=1)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_files_that_are_no_checkpoint_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    for content in (b"", b"garbage", b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="is not a safetensors file"):
            load_checkpoint(path)
    saved(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        load_checkpoint(path)
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        load_checkpoint(path)


def test_foreign_safetensors_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    for metadata in (None, {"format": "pt"}):
        safetensors.torch.save_file({"weight": torch.zeros(3)}, path, metadata=metadata)
        with pytest.raises(CheckpointError, match="without the metadata 'dkl'"):
            load_checkpoint(path)
    for document in ("no json", "{}", json.dumps({"architecture": {"kind": "unheard-of"}})):
        safetensors.torch.save_file({"weight": torch.zeros(3)}, path, metadata={"dkl": document})
        with pytest.raises(CheckpointError, match="does not describe a known model"):
            load_checkpoint(path)


def test_weights_of_another_architecture_are_refused_by_name(tmp_path):
    path = tmp_path / "model.safetensors"
    other = build(recipes.CNN(width=2), channels=1, classes=3)
    save_checkpoint(path, other, **ABOUT)
    with pytest.raises(CheckpointError, match=r"do not fit.*missing \(block1.*unexpected \(bn1") as caught:
        load_checkpoint(path)
    assert str(caught.value).count(" torch.float32") + str(caught.value).count(" torch.int64") <= 10

    save_checkpoint(path, build(WRN, channels=1, classes=4), **ABOUT)
    with pytest.raises(CheckpointError, match=r"2 missing \(fc.bias \(3,\).*2 unexpected \(fc.bias \(4,\)"):
        load_checkpoint(path)


def test_a_checkpoint_that_claims_to_be_huge_allocates_nothing(tmp_path):
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, build(WRN, channels=1, classes=3), **{**ABOUT, "classes": 10**12})
    with pytest.raises(CheckpointError, match="do not fit"):
        load_checkpoint(path)


def test_a_missing_checkpoint_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "model.safetensors")


# --- the state of a training run --------------------------------------------------------------------------


def test_a_state_comes_back(tmp_path):
    path = tmp_path / "last.pt"
    assert load_state(path) is None
    state = {"weights": {"w": torch.rand(3)}, "epoch": 3, "history": [{"loss": 0.1, "eps": None}], "name": "x"}
    save_state(path, {"epoch": 2})
    save_state(path, state)
    loaded = load_state(path)
    assert torch.equal(loaded["weights"].pop("w"), state["weights"].pop("w"))
    assert loaded == state
    assert os.listdir(tmp_path) == ["last.pt"]


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_a_damaged_state_is_refused_with_the_way_out(tmp_path, keep):
    path = tmp_path / "last.pt"
    save_state(path, {"w": torch.rand(1000)})
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(CheckpointError, match="is damaged; delete it to train from the beginning"):
        load_state(path)


class Evil:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_a_state_is_never_unpickled(tmp_path, capsys):
    torch.save({"evil": Evil()}, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="is damaged"):
        load_state(tmp_path / "last.pt")
    assert capsys.readouterr().out == ""
