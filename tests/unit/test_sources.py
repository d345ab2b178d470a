"""From a model source to a model: checkpoints, functions, timm's models and RobustBench's; all without network."""

import dataclasses
import hashlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch.nn.functional import interpolate
from trials import cnn, evaluation, write_images

from dkl import pretrained, zoo
from dkl.architectures import CNN
from dkl.downloads import DownloadError
from dkl.preprocessing import Geometry, Preprocessed
from dkl.protocols import Checkpoint, JobResult
from dkl.sources import load_model
from dkl.weights import CheckpointError, LoadedModel, save_checkpoint

ABOUT = {"architecture": CNN(width=4), "channels": 1, "classes": 10, "dataset": "npz:tiny"}


def never(source: JobResult | Checkpoint) -> Path:
    raise AssertionError(f"{source} is not to be fetched")


def loaded(source: dict[str, Any], data_dir: Path, **how: Any) -> LoadedModel:
    how = {"fetch": never, "allow_functions": False, **how}
    return load_model(evaluation(model=source), data_dir=data_dir, **how)


# --- checkpoints ------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[Path, str]:
    path = tmp_path / "model.safetensors"
    return path, save_checkpoint(path, cnn(), **ABOUT)  # type: ignore[arg-type]


def test_a_checkpoint_says_what_it_is(checkpoint: tuple[Path, str], tmp_path: Path) -> None:
    path, sha256 = checkpoint
    found = loaded({"checkpoint": sha256}, tmp_path, fetch=lambda _: path)
    assert (found.architecture, found.channels, found.classes, found.dataset) == ("CNN-4", 1, 10, "npz:tiny")
    assert (found.sha256, found.preprocessing, found.notes) == (sha256, "none", ())


def test_a_file_that_is_not_the_checkpoint(checkpoint: tuple[Path, str], tmp_path: Path) -> None:
    path, sha256 = checkpoint
    with pytest.raises(CheckpointError, match=f"has sha256 {sha256}, the recipe asks for {'1' * 64}"):
        loaded({"checkpoint": "1" * 64}, tmp_path, fetch=lambda _: path)


@pytest.mark.parametrize("name", ["checkpoint", "job"])
def test_normalisation_is_a_part_of_the_model(name: str, checkpoint: tuple[Path, str], tmp_path: Path) -> None:
    path, sha256 = checkpoint
    source = {name: sha256 if name == "checkpoint" else "0" * 12, "preprocessing": {"mean": [0.5], "std": [0.25]}}
    found = loaded(source, tmp_path, fetch=lambda _: path)
    x = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(found.model(x), cnn()((x - 0.5) / 0.25))
    assert found.preprocessing == "normalise mean (0.5) std (0.25)"
    assert not found.model.training


def test_normalisation_of_other_channels_is_refused(checkpoint: tuple[Path, str], tmp_path: Path) -> None:
    path, sha256 = checkpoint
    with pytest.raises(ValueError, match="has 3 means, the model takes 1 channels"):
        loaded(
            {"checkpoint": sha256, "preprocessing": {"mean": [0.5] * 3, "std": [0.2] * 3}},
            tmp_path,
            fetch=lambda _: path,
        )


# --- what is done to the input ----------------------------------------------------------------------------


def test_geometry_scales_the_shorter_side_and_cuts_out_the_middle() -> None:
    geometry = Geometry(resize=8, crop=6, interpolation="bilinear")
    x = torch.rand(2, 3, 16, 24)
    expected = interpolate(x, (8, 12), mode="bilinear", antialias=True)[..., 1:7, 3:9]
    torch.testing.assert_close(geometry.apply(x), expected)
    prepared = torch.rand(2, 3, 6, 6)
    assert geometry.apply(prepared) is prepared
    assert geometry.apply(torch.rand(1, 3, 4, 4)).shape == (1, 3, 6, 6)


def test_bicubic_scaling_stays_in_the_range_of_pixels() -> None:
    edges = torch.zeros(1, 1, 16, 16)
    edges[..., 8:] = 1
    out = Geometry(resize=32, crop=32, interpolation="bicubic").apply(edges)
    assert (out.min(), out.max()) == (0, 1)


def test_preprocessing_has_gradients_and_a_description() -> None:
    geometry = Geometry(resize=8, crop=6, interpolation="bicubic")
    model = Preprocessed(torch.nn.Flatten(), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), geometry)
    assert model.description == (
        "resize 8 bicubic, crop 6, normalise mean (0.485, 0.456, 0.406) std (0.229, 0.224, 0.225)"
    )
    x = torch.rand(1, 3, 12, 12, requires_grad=True)
    model(x).sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).any()


# --- functions --------------------------------------------------------------------------------------------

MODULE = """
import torch

class Defence(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(64, 10)

    def forward(self, x):
        return self.fc(x.flatten(1))

def net():
    torch.manual_seed(0)
    return Defence()

def two():
    model = Defence()
    model.forward = lambda x: (x, x)
    return model

def text():
    return "no model"
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with functions, in a directory that Python looks in; images for them lie there too."""
    write_images(tmp_path, cnn(), 4)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_defences", raising=False)
    path = tmp_path / "my_defences.py"
    path.write_text(MODULE)
    return path


def test_a_function_makes_the_model(module: Path) -> None:
    found = loaded({"function": "my_defences:net"}, module.parent, allow_functions=True)
    assert (found.architecture, found.channels, found.classes, found.dataset) == ("Defence", 1, 10, None)
    assert not found.model.training
    assert found.model(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    again = loaded({"function": "my_defences:net"}, module.parent, allow_functions=True)
    assert again.sha256 == found.sha256
    module.write_text(MODULE + "# the defence has changed\n")
    changed = loaded({"function": "my_defences:net"}, module.parent, allow_functions=True)
    assert changed.sha256 != found.sha256


def test_a_function_is_not_called_unless_that_is_allowed(module: Path) -> None:
    module.write_text("raise SystemExit('imported')")
    with pytest.raises(ValueError, match=r"a service runs no code.*dklbench run RECIPE --model my_defences:net"):
        loaded({"function": "my_defences:net"}, module.parent)


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        ("no_such_module:net", "there is no module 'no_such_module' for --model no_such_module:net"),
        ("my_defences:nott", "the module my_defences has no 'nott'"),
        ("my_defences:text", "my_defences:text returns a str; return an nn.Module"),
        ("my_defences:two", "answers 2 images with a tuple; expected logits of shape \\(2, classes\\)"),
    ],
)
def test_functions_that_give_no_model(function: str, sentence: str, module: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        loaded({"function": function}, module.parent, allow_functions=True)


# --- timm -------------------------------------------------------------------------------------------------

TIMM = {"timm": "resnet18.a1_in1k"}


def test_without_timm_a_sentence_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # what Python itself does for a package that is absent
    with pytest.raises(ValueError, match=r"need the package timm: pip install 'dkl-bench\[worker\]'"):
        loaded(TIMM, tmp_path)


def test_a_timm_model_brings_its_preprocessing(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed: pip install -e '.[dev]'")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = timm.create_model("resnet18.a1_in1k", pretrained=False).eval()
    folder = tmp_path / "timm" / "resnet18.a1_in1k"
    folder.mkdir(parents=True)
    safetensors.torch.save_file(theirs.state_dict(), folder / "model.safetensors")
    before = torch.get_rng_state()
    found = loaded(TIMM, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert (found.architecture, found.channels, found.classes, found.dataset) == (TIMM["timm"], 3, 1000, None)
    assert found.preprocessing == (
        "resize 236 bicubic, crop 224, normalise mean (0.485, 0.456, 0.406) std (0.229, 0.224, 0.225)"
    )
    assert len(found.sha256) == 64
    x = torch.rand(1, 3, 224, 224)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(found.model(x), theirs((x - mean) / std))


def test_a_timm_model_without_a_network_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm", reason="timm is not installed: pip install -e '.[dev]'")
    monkeypatch.setattr(pretrained, "_HUB", "http://127.0.0.1:9")
    with pytest.raises(
        DownloadError, match=r"cannot fetch .*timm/resnet18\.a1_in1k/resolve/main/model\.safetensors"
    ):
        loaded(TIMM, tmp_path)


def test_a_timm_file_of_another_architecture(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="timm is not installed: pip install -e '.[dev]'")
    folder = tmp_path / "timm" / "resnet18.a1_in1k"
    folder.mkdir(parents=True)
    safetensors.torch.save_file({"w": torch.zeros(3)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"timm cannot put .* into resnet18\.a1_in1k"):
        loaded(TIMM, tmp_path)


def test_an_unknown_timm_name_offers_the_closest(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="timm is not installed: pip install -e '.[dev]'")
    for name in ("resnet18.a1_in2k", "resnet_18"):
        with pytest.raises(ValueError, match=rf"timm has no pretrained model '{name}'; did you mean .*resnet18"):
            loaded({"timm": name}, tmp_path)


# --- torchvision ------------------------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights of a small network, called as torchvision calls files: by the beginning of their sha256."""
    models = pytest.importorskip(
        "torchvision.models", reason="torchvision is not installed: pip install -e '.[dev]'"
    )
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    weights = models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(models.shufflenet_v2_x0_5(weights=None).state_dict(), tmp_path / "weights")
    sha256 = hashlib.sha256((tmp_path / "weights").read_bytes()).hexdigest()
    url = f"http://127.0.0.1:9/shufflenetv2_x0.5-{sha256[:10]}.pth"
    monkeypatch.setattr(weights, "_value_", dataclasses.replace(weights.value, url=url))
    return (tmp_path / "weights").rename(tmp_path / url.rpartition("/")[2])


TORCHVISION = {"torchvision": "shufflenet_v2_x0_5.IMAGENET1K_V1"}


@pytest.mark.parametrize("place", ["torch/hub/checkpoints", "torchvision"])
def test_a_torchvision_model_from_torchs_cache_or_ours(place: str, published: Path, tmp_path: Path) -> None:
    from torchvision import models

    (tmp_path / place).mkdir(parents=True)
    path = published.rename(tmp_path / place / published.name)
    before = torch.get_rng_state()
    found = loaded(TORCHVISION, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert (found.architecture, found.channels, found.classes) == (TORCHVISION["torchvision"], 3, 1000)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.preprocessing.startswith("resize 256 bilinear, crop 224, normalise mean (0.485, 0.456, 0.406)")
    weights = models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1
    theirs = models.shufflenet_v2_x0_5(weights=None)
    theirs.load_state_dict(torch.load(path, weights_only=True))
    x = torch.rand(2, 3, 300, 270)
    with torch.no_grad():
        torch.testing.assert_close(found.model(x), theirs.eval()(weights.transforms()(x)))
    assert "get_state_dict" not in vars(weights)


def test_a_torchvision_file_that_is_not_what_its_name_says(published: Path, tmp_path: Path) -> None:
    path = tmp_path / "torch" / "hub" / "checkpoints" / published.name
    path.parent.mkdir(parents=True)
    torch.save({"w": torch.zeros(3)}, path)
    with pytest.raises(
        DownloadError, match=r"which should begin with \w+ as its name says; delete it to fetch it"
    ):
        loaded(TORCHVISION, tmp_path)


def test_a_torchvision_model_without_a_network_is_one_sentence(published: Path, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=rf"cannot fetch http://127\.0\.0\.1:9/{published.name}"):
        loaded(TORCHVISION, tmp_path)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("resnet_18.IMAGENET1K_V1", "torchvision has no classifier 'resnet_18'; did you mean resnet18"),
        (
            "resnet50.IMAGENET1K_V3",
            "has no weights 'resnet50.IMAGENET1K_V3'; it has resnet50.IMAGENET1K_V1, resnet50.",
        ),
        ("mnasnet0_75.DEFAULT", "names no weights of torchvision; write ARCHITECTURE.WEIGHTS"),
        ("resnet18", "names no weights of torchvision; write ARCHITECTURE.WEIGHTS: resnet18.IMAGENET1K_V1"),
    ],
)
def test_torchvision_names_that_are_none(name: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        loaded({"torchvision": name}, tmp_path)


# --- RobustBench ------------------------------------------------------------------------------------------

ZOO = "cifar10/corruptions/Hendrycks2020AugMix_WRN"  # the smallest in the zoo
needs_robustbench = pytest.mark.skipif(
    importlib.util.find_spec("robustbench") is None,
    reason="robustbench is not installed: pip install --no-deps robustbench==1.1.1",
)


def test_without_robustbench_a_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "robustbench", raising=False)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ValueError, match=r"needs the package robustbench .*pip install --no-deps robustbench"):
        loaded({"zoo": ZOO}, tmp_path)


def zoo_network() -> torch.nn.Module:
    entry = zoo.zoo_names.find(ZOO)
    return zoo._built(zoo._plan(entry, zoo._package()), entry)


@needs_robustbench
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model."])
def test_a_zoo_model_from_a_file_as_the_zoo_has_them(prefix: str, tmp_path: Path) -> None:
    theirs = zoo_network().eval()
    state = {prefix + name: v for name, v in theirs.state_dict().items() if name not in {"mu", "sigma"}}
    path = tmp_path / "zoo" / f"{ZOO}.pt"
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": state, "epoch": 3}, path)
    found = loaded({"zoo": ZOO}, tmp_path)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(found.model(x), theirs(x))
    assert (found.architecture, found.channels, found.classes, found.dataset) == (
        "WideResNet-40-2",
        3,
        10,
        "cifar10",
    )
    assert found.preprocessing.startswith("normalise mean (0.5, 0.5, 0.5)")
    assert path.with_name(path.name + ".sha256").read_text().startswith(found.sha256)


@needs_robustbench
def test_a_zoo_file_that_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "zoo" / f"{ZOO}.pt"
    path.parent.mkdir(parents=True)
    torch.save({"conv1.weight": torch.zeros(3)}, path)
    with pytest.raises(
        CheckpointError, match=r"do not fit the architecture.*missing \(.*unexpected \(conv1.weight"
    ):
        loaded({"zoo": ZOO}, tmp_path)


@needs_robustbench
def test_a_zoo_model_without_a_network_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "_DRIVE", "http://127.0.0.1:9/download?id=")
    with pytest.raises(DownloadError, match=r"cannot fetch http://127\.0\.0\.1:9"):
        loaded({"zoo": ZOO}, tmp_path)
