"""Weights that other code saved: read without running anything, renamed, or refused with what does not fit."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from dkl import architectures
from dkl.architectures import PreActResNet, ResNet, SwishWideResNet, TimmModel, WideResNet
from dkl.documents import Normalisation
from dkl.foreign import Converted, convert, load_into, read_entries
from dkl.models import build
from dkl.weights import CheckpointError, load_checkpoint, save_checkpoint

WRN = WideResNet(depth=10, width=1)


@pytest.fixture
def network() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(WRN, channels=3, classes=10).eval()


def converted(source: Path, *expected: str, **changes: object) -> torch.nn.Module:
    target = source.with_name("ours.safetensors")
    about = {"architecture": WRN, "dataset": "cifar10", **changes}
    sha256, notes = convert(source, target, **about)  # type: ignore[arg-type]
    loaded = load_checkpoint(target)
    assert notes == expected
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
    note = f"{len(state)} tensors were stored in float16 and made float32"
    ours = converted(tmp_path / "theirs.safetensors", note).state_dict()
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
        converted(tmp_path / "theirs.pt", architecture=ResNet(width=4))
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
    with pytest.raises(CheckpointError, match=r"holds more than weights \(dkl\.models\.wide\.WideResNet\)"):
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


# --- layouts of published code ----------------------------------------------------------------------------

CIFAR10 = Normalisation(mean=(0.4914, 0.4822, 0.4465), std=(0.2471, 0.2435, 0.2616))
SWISH = SwishWideResNet(depth=10, width=1, normalisation=CIFAR10)
WIDE = WideResNet(depth=10, width=2)


def drawn(model: architectures.Model, channels: int = 3, classes: int = 10) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(model, channels=channels, classes=classes).eval()


def kept(content: object, folder: Path, architecture: architectures.Model, **changes: str) -> Converted:
    """What `convert` says about `content` saved by torch; the checkpoint is ours.safetensors."""
    torch.save(content, folder / "theirs.pt")
    about = {"architecture": architecture, "dataset": "cifar10", **changes}
    return convert(folder / "theirs.pt", folder / "ours.safetensors", **about)  # type: ignore[arg-type]


def assert_kept(network: torch.nn.Module, folder: Path) -> None:
    """The checkpoint holds the weights of `network`, all of them, with its types."""
    ours = safetensors.torch.load_file(folder / "ours.safetensors")
    wanted = network.state_dict()
    assert ours.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=0, msg=name)


def test_the_averages_of_the_dkl_authors(tmp_path: Path) -> None:
    """swa.py: (1 - tau) * new + tau * old of every entry, counts too, of files that DataParallel named."""
    network = drawn(WIDE)
    state = prefixed(network, "module.")
    averaged = {name: 0.1 * value + 0.9 * value for name, value in state.items()}
    count = "module.bn1.num_batches_tracked"
    averaged[count] = torch.tensor(390.9999)
    assert not kept(averaged, tmp_path, WIDE).notes
    network.bn1.num_batches_tracked.fill_(391)
    network.load_state_dict(
        {**network.state_dict(), **{n.removeprefix("module."): v for n, v in averaged.items() if "num" not in n}}
    )
    assert_kept(network, tmp_path)


def with_sub_block1(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    state = network.state_dict()
    return {**state, **{f"sub_{n}": torch.ones_like(v) for n, v in state.items() if n.startswith("block1.")}}


def test_the_stage_that_trades_never_runs_is_left_out(tmp_path: Path) -> None:
    network = drawn(WIDE)
    state = {f"module.{name}": value for name, value in with_sub_block1(network).items()}
    (note,) = kept(state, tmp_path, WIDE).notes
    assert note == "left out 13 entries of sub_block1, a stage that TRADES never runs"
    assert_kept(network, tmp_path)


def test_what_is_only_called_like_that_stage_is_refused(tmp_path: Path) -> None:
    network = drawn(WIDE)
    wider = {**with_sub_block1(network), "sub_block1.layer.0.conv1.weight": torch.ones(32, 32, 3, 3)}
    longer = {**with_sub_block1(network), "sub_block1.layer.1.conv1.weight": torch.ones(32, 32, 3, 3)}
    for state in (wider, longer):
        with pytest.raises(CheckpointError, match=r"0 missing .*1[34] unexpected \(sub_block1"):
            kept(state, tmp_path, WIDE)


def test_a_checkpoint_of_dm_at(tmp_path: Path) -> None:
    """WATrainer.save_model_resume: DataParallel(Sequential(network)), the average beside the weights."""
    network, other = drawn(SWISH), {n: v + 1 for n, v in prefixed(drawn(SWISH), "module.0.").items()}
    content = {
        "model_state_dict": prefixed(network, "module.0."),
        "unaveraged_model_state_dict": other,
        "optimizer_state_dict": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
        "scheduler_state_dict": {"last_epoch": 3},
        "epoch": 400,
    }
    assert not kept(content, tmp_path, SWISH).notes
    assert_kept(network, tmp_path)
    assert not kept(content, tmp_path, SWISH, entry="unaveraged_model_state_dict").notes
    network.load_state_dict({name: value + 1 for name, value in network.state_dict().items()})
    assert_kept(network, tmp_path)


def test_a_layer_before_the_network_without_constants_is_mentioned(tmp_path: Path) -> None:
    """DM-AT with --normalize: Sequential(Normalization, network), whose constants are no buffers."""
    network = drawn(WIDE)
    (note,) = kept({"model_state_dict": prefixed(network, "module.1.")}, tmp_path, WIDE).notes
    assert "most likely a normalisation; evaluate it with 'model.preprocessing=" in note
    assert_kept(network, tmp_path)
    with pytest.raises(CheckpointError, match="most likely a second normalisation: judge it with its own code"):
        kept(prefixed(drawn(SWISH), "module.1."), tmp_path, SWISH)


ROBUSTBENCH = [WIDE, ResNet(width=4), PreActResNet(width=4)]
MU, SIGMA = torch.tensor(CIFAR10.mean).view(1, 3, 1, 1), torch.tensor(CIFAR10.std).view(1, 3, 1, 1)
SAID = (
    "these weights are for normalised pixels; evaluate them with 'model.preprocessing="
    '{"mean": [0.4914, 0.4822, 0.4465], "std": [0.2471, 0.2435, 0.2616]}\''
)


@pytest.mark.parametrize("architecture", ROBUSTBENCH, ids=architectures.show_model)
@pytest.mark.parametrize(
    ("inner", "mean", "std"),
    [
        ("", "mu", "sigma"),
        ("module.", "module.mu", "module.sigma"),
        ("model.", "normalize.mean", "normalize.std"),
        ("module.1.", "module.0.mean", "module.0.sigma"),
    ],
)
def test_normalisation_in_the_file_is_said(
    architecture: architectures.Model, inner: str, mean: str, std: str, tmp_path: Path
) -> None:
    network = drawn(architecture)
    state = {mean: MU, std: SIGMA, **prefixed(network, inner)}
    assert kept({"state_dict": state}, tmp_path, architecture).notes == (SAID,)
    assert_kept(network, tmp_path)
    no_change = {**state, mean: 0 * MU, std: SIGMA / SIGMA}
    assert not kept(no_change, tmp_path, architecture).notes


@pytest.mark.parametrize(
    "architecture",
    [SWISH, WIDE.model_copy(update={"normalisation": CIFAR10}), PreActResNet(width=2, normalisation=CIFAR10)],
    ids=lambda architecture: architecture.kind,
)
def test_normalisation_in_the_file_is_compared_with_our_own(
    architecture: architectures.Model, tmp_path: Path
) -> None:
    network = drawn(architecture)
    state = {"mean": MU[0], "std": SIGMA[0], **network.state_dict()}
    assert not kept(state, tmp_path, architecture).notes
    assert_kept(network, tmp_path)
    with pytest.raises(
        CheckpointError,
        match=r"std \(0.2023, 0.2435, 0.2616\), the architecture says .* std \(0.2471, .*; write the former into",
    ):
        kept({**state, "std": torch.tensor([0.2023, 0.2435, 0.2616])}, tmp_path, architecture)


def test_half_a_normalisation_is_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"1 unexpected \(mu \(1, 3, 1, 1\)"):
        kept({"mu": MU, **drawn(WIDE).state_dict()}, tmp_path, WIDE)


def test_a_network_without_the_last_batch_norm_is_another(tmp_path: Path) -> None:
    model = PreActResNet(width=4)
    state = {name: value for name, value in drawn(model).state_dict().items() if not name.startswith("bn.")}
    with pytest.raises(CheckpointError, match="of a PreActResNet without the batch norm before its last layer"):
        kept(state, tmp_path, model)


@pytest.mark.parametrize("architecture", [WIDE, SWISH, ResNet(width=4), TimmModel(name="resnet18")])
def test_wrong_shapes_and_missing_weights_are_named(architecture: architectures.Model, tmp_path: Path) -> None:
    state = drawn(architecture).state_dict()
    state = {name.removeprefix("model."): value for name, value in state.items()}
    name = [name for name, value in state.items() if value.ndim == 4][3]
    wrong = {**state, name: torch.ones(2, 2, 1, 1)}
    with pytest.raises(CheckpointError, match=rf"1 missing .*{name} .*1 unexpected .*{name} \(2, 2, 1, 1\)"):
        kept(wrong, tmp_path, architecture)
    del wrong[name]
    with pytest.raises(CheckpointError, match=rf"1 missing .*{name} .*0 unexpected"):
        kept(wrong, tmp_path, architecture)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "dpn68", "tresnet_m"])
def test_weights_of_timm_networks(name: str, tmp_path: Path) -> None:
    """Named as timm names them; channels and classes are found wherever the architecture has them."""
    pytest.importorskip("timm")
    network = drawn(TimmModel(name=name), channels=1, classes=7)
    kept(prefixed(network.model, "module."), tmp_path, TimmModel(name=name), dataset="npz:mine")  # type: ignore[arg-type]
    assert_kept(network, tmp_path)


@pytest.mark.parametrize("architecture", [SWISH, TimmModel(name="swin_tiny_patch4_window7_224", image_size=32)])
def test_what_no_state_dict_holds_comes_back(architecture: architectures.Model, tmp_path: Path) -> None:
    """Normalisation and relative positions are no weights, and the network needs them all the same."""
    network, path = drawn(architecture), tmp_path / "ours.safetensors"
    save_checkpoint(path, network, architecture=architecture, channels=3, classes=10, dataset="cifar10")
    x = torch.rand(2, 3, 32, 32)
    before = torch.get_rng_state()
    with torch.no_grad():
        assert torch.equal(load_checkpoint(path).model(x), network(x))
    assert torch.equal(torch.get_rng_state(), before)


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
