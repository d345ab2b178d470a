"""Files of weights: whole, deterministic, or refused."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from dkl.architectures import CNN, SwishWideResNet
from dkl.documents import Normalisation
from dkl.models import build
from dkl.tensors import write_tensors
from dkl.weights import (
    CheckpointError,
    load_checkpoint,
    load_state,
    save_checkpoint,
    save_state,
)

# --- checkpoints ------------------------------------------------------------------------------------------

WRN = SwishWideResNet(depth=10, width=1, normalisation=Normalisation(mean=(0.4,), std=(0.2,)))
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


@pytest.mark.long
def test_equal_weights_are_equal_bytes_in_every_process(tmp_path):
    _, expected = saved(tmp_path / "model.safetensors")
    script = (
        "import sys, torch; from pathlib import Path; from dkl.architectures import SwishWideResNet\n"
        "from dkl.documents import Normalisation; from dkl.models import build\n"
        "from dkl.weights import save_checkpoint\n"
        "grey = Normalisation(mean=(0.4,), std=(0.2,)); torch.manual_seed(0)\n"
        "wrn = SwishWideResNet(depth=10, width=1, normalisation=grey)\n"
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


def test_the_bytes_are_those_of_safetensors(tmp_path):
    kinds = (torch.float32, torch.int64, torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.bool)
    kinds += (torch.int16, torch.int8, torch.uint8)
    state = {
        f"{name}{n}": torch.arange(n).to(kind) for n, kind in enumerate(kinds) for name in ("b", "a", "\u00fc")
    }
    state["transposed"] = torch.rand(4, 3).T
    with (tmp_path / "ours").open("wb") as file:
        sha256 = write_tensors(file, state, json.dumps({"a": 'quoted "b"'}))
    state["transposed"] = state["transposed"].contiguous()
    expected = safetensors.torch.save(state, metadata={"dkl": json.dumps({"a": 'quoted "b"'})})
    assert (tmp_path / "ours").read_bytes() == expected
    assert sha256 == hashlib.sha256(expected).hexdigest()


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
    other = build(CNN(width=2), channels=1, classes=3)
    save_checkpoint(path, other, **ABOUT)
    with pytest.raises(CheckpointError, match=r"do not fit.*missing \(batchnorm.*unexpected \(bn1") as caught:
        load_checkpoint(path)
    assert str(caught.value).count(" torch.float32") + str(caught.value).count(" torch.int64") <= 10

    save_checkpoint(path, build(WRN, channels=1, classes=4), **ABOUT)
    with pytest.raises(
        CheckpointError, match=r"2 missing \(logits.bias \(3,\).*2 unexpected \(logits.bias \(4,\)"
    ):
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
