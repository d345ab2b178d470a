"""Weights that other code saved: read without running anything, renamed, or refused with what does not fit."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from dkl import recipes
from dkl.foreign import convert, load_into, read_entries
from dkl.models import build
from dkl.weights import CheckpointError, load_checkpoint

WRN = recipes.WideResNet(depth=10, width=1)


@pytest.fixture
def network() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(WRN, channels=3, classes=10).eval()


def converted(source: Path, **changes: object) -> torch.nn.Module:
    target = source.with_name("ours.safetensors")
    about = {"architecture": WRN, "dataset": "cifar10", **changes}
    sha256 = convert(source, target, **about)  # type: ignore[arg-type]
    loaded = load_checkpoint(target)
    assert (loaded.sha256, loaded.architecture, loaded.channels, loaded.classes) == (sha256, "WRN-10-1", 3, 10)
    return loaded.model


def prefixed(network: torch.nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in network.state_dict().items()}


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model.", "_orig_mod.module."])
@pytest.mark.parametrize("entry", [None, "state_dict", "model", "net", "ema"])
def test_what_training_scripts_save(
    prefix: str, entry: str | None, network: torch.nn.Module, tmp_path: Path
) -> None:
    state = prefixed(network, prefix)
    beside = {"epoch": 3, "args": argparse.Namespace(lr=0.1), "acc": np.float64(0.5), "best": torch.tensor(0.5)}
    torch.save(state if entry is None else {entry: state, **beside}, tmp_path / "theirs.pt")
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(converted(tmp_path / "theirs.pt")(x), network(x))


def test_counts_may_be_missing_and_halves_become_floats(network: torch.nn.Module, tmp_path: Path) -> None:
    state = {name: v.half() for name, v in network.state_dict().items() if "num_batches" not in name}
    safetensors.torch.save_file(state, tmp_path / "theirs.safetensors")
    ours = converted(tmp_path / "theirs.safetensors").state_dict()
    assert torch.equal(ours["fc.weight"], state["fc.weight"].float())
    assert ours["bn1.num_batches_tracked"] == 0


def test_of_several_state_dicts_one_is_chosen(network: torch.nn.Module, tmp_path: Path) -> None:
    averaged = {name: v + 1 if v.is_floating_point() else v for name, v in network.state_dict().items()}
    torch.save({"model": network.state_dict(), "ema": averaged}, tmp_path / "theirs.pt")
    with pytest.raises(CheckpointError, match="holds several state dicts; choose one with --entry: model, ema"):
        converted(tmp_path / "theirs.pt")
    ours = converted(tmp_path / "theirs.pt", entry="ema").state_dict()
    assert torch.equal(ours["fc.bias"], averaged["fc.bias"])
    with pytest.raises(CheckpointError, match="holds no state dict called 'swa'; found model, ema"):
        converted(tmp_path / "theirs.pt", entry="swa")


def test_weights_that_do_not_fit_are_named(network: torch.nn.Module, tmp_path: Path) -> None:
    torch.save(network.state_dict(), tmp_path / "theirs.pt")
    with pytest.raises(CheckpointError, match=r"do not fit.* missing \(.* unexpected \(") as caught:
        converted(tmp_path / "theirs.pt", architecture=recipes.ResNet(width=4))
    assert str(caught.value).count("torch.") == 10  # five of each
    with pytest.raises(CheckpointError, match="tell 10 classes apart, cifar100 has 100"):
        converted(tmp_path / "theirs.pt", dataset="cifar100")
    assert not (tmp_path / "ours.safetensors").exists()


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.trace,))


def test_a_file_that_would_run_code_is_refused_and_does_not(network: torch.nn.Module, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    torch.save({"state_dict": network.state_dict(), "evil": Evil(trace)}, tmp_path / "theirs.pt")
    with pytest.raises(
        CheckpointError, match="reading that would run code from the file; save its state dict alone"
    ):
        converted(tmp_path / "theirs.pt")
    assert not trace.exists()


def test_a_pickled_network_is_refused_by_its_class(network: torch.nn.Module, tmp_path: Path) -> None:
    torch.save(network, tmp_path / "theirs.pt")
    with pytest.raises(CheckpointError, match=r"holds more than weights \(dkl\.models\.WideResNet\)"):
        read_entries(tmp_path / "theirs.pt")


@pytest.mark.parametrize("content", [b"", b"<html>", b"PK\x03\x04 and so on", b"\x80\x02 and so on"])
def test_what_is_no_file_of_weights(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "theirs.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="is no file of weights, or damaged"):
        read_entries(tmp_path / "theirs.pt")


def test_a_file_without_weights(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "theirs.pt")
    with pytest.raises(CheckpointError, match=r"holds no state dict.*found epoch, optimizer"):
        converted(tmp_path / "theirs.pt")
    torch.save([1, 2], tmp_path / "theirs.pt")
    with pytest.raises(CheckpointError, match="holds a list; expected a state dict"):
        converted(tmp_path / "theirs.pt")


# --- into networks that are not ours ----------------------------------------------------------------------


class Normalising(torch.nn.Module):
    """A network whose code knows its normalisation, whether or not the file says it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mu", torch.full((3,), 0.5))
        self.fc = torch.nn.Linear(3, 2)


def test_the_spelling_that_fits_is_taken_and_constants_may_be_missing(tmp_path: Path) -> None:
    network, path = Normalising(), tmp_path / "theirs.pt"
    state = {"fc.weight": torch.ones(2, 3), "fc.bias": torch.ones(2)}
    wrong = {f"module.{name}": value for name, value in state.items()}
    assert load_into(network, path, [wrong, state]) is None
    assert torch.equal(network.fc.weight, torch.ones(2, 3))
    assert torch.equal(network.mu, torch.full((3,), 0.5))


def test_entries_without_a_place_are_noted_and_missing_weights_refused(tmp_path: Path) -> None:
    network, path = Normalising(), tmp_path / "theirs.pt"
    state = {"fc.weight": torch.ones(2, 3), "fc.bias": torch.ones(2), "head.bias": torch.ones(1)}
    assert load_into(network, path, [state]) == "1 entries of theirs.pt have no place in the network (head.bias)"
    del state["fc.bias"]
    with pytest.raises(CheckpointError, match=r"missing \(fc.bias"):
        load_into(network, path, [state])
    with pytest.raises(CheckpointError, match=r"missing \(fc.weight \(2, 3\).*unexpected \(fc.weight \(2, 4\)"):
        load_into(network, path, [{"fc.weight": torch.ones(2, 4), "fc.bias": torch.ones(2)}])
