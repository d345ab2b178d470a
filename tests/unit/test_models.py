"""Architectures: published sizes and parameter names, logits of published code, others' checkpoints; modes."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from dkl import architectures
from dkl.architectures import (
    CNN,
    VGG,
    MobileNetV2,
    PreActResNet,
    ResNet,
    ShuffleNetV1,
    ShuffleNetV2,
    SwishWideResNet,
    ThinResNet,
    TimmModel,
    TorchvisionModel,
    WideResNet,
    show_model,
)
from dkl.documents import Normalisation
from dkl.foreign import convert
from dkl.models import batch_mode, build, eval_mode, first_update, tapped
from dkl.weights import load_checkpoint

GREY = Normalisation(mean=(0.4,), std=(0.2,))
CIFAR10 = Normalisation(mean=(0.4914, 0.4822, 0.4465), std=(0.2471, 0.2435, 0.2616))
CIFAR100 = Normalisation(mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762))
SWISH = SwishWideResNet(depth=10, width=1, normalisation=CIFAR10)
SMALL = [
    CNN(width=4),
    ResNet(width=4),
    ResNet(depth=50, width=4),
    ResNet(width=4, strided_stages=2),
    PreActResNet(width=4),
    WideResNet(depth=10, width=1),
    SWISH,
    ThinResNet(depth=8),
    VGG(depth=8),
    MobileNetV2(),
    ShuffleNetV1(),
    ShuffleNetV2(),
]


def parameters(model: architectures.Model, classes: int) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build(model, channels=3, classes=classes).parameters())


@pytest.mark.parametrize(
    ("model", "classes", "count"),
    [
        (WideResNet(depth=34, width=10), 10, 46_160_474),
        (WideResNet(depth=34, width=10), 100, 46_218_164),
        (WideResNet(depth=34, width=20), 10, 184_531_674),
        (SwishWideResNet(depth=28, width=10, normalisation=CIFAR10), 10, 36_479_194),
        (SwishWideResNet(depth=70, width=16, normalisation=CIFAR10), 10, 266_796_506),
        (ResNet(), 10, 11_173_962),
        (ResNet(strided_stages=2), 10, 11_173_962),  # strides have no parameters
        (PreActResNet(), 10, 11_172_170),  # 11,171,146 without the last batch norm
        (TimmModel(name="resnet50"), 1000, 25_557_032),
        # Distillation papers print these in millions.
        (ThinResNet(depth=20), 100, 278_324),
        (ThinResNet(depth=32), 100, 472_756),
        (ThinResNet(depth=56), 100, 861_620),
        (ThinResNet(depth=110), 100, 1_736_564),
        (ThinResNet(depth=8, width=4), 100, 1_233_540),
        (ThinResNet(depth=32, width=4), 100, 7_433_860),
        (WideResNet(depth=16, width=2), 100, 703_284),
        (WideResNet(depth=40, width=1), 100, 569_780),
        (WideResNet(depth=40, width=2), 100, 2_255_156),
        (VGG(depth=8), 100, 3_965_028),
        (VGG(depth=13), 100, 9_462_180),
        (MobileNetV2(), 100, 812_836),
        (ShuffleNetV1(), 100, 949_258),
        (ShuffleNetV2(), 100, 1_355_528),
        (ResNet(depth=50), 100, 23_705_252),
        (TimmModel(name="mobilenetv1_100"), 1000, 4_231_976),
    ],
    ids=lambda value: show_model(value) if isinstance(value, architectures.Document) else str(value),
)
def test_parameter_counts_as_published(model, classes, count):
    assert parameters(model, classes) == count


def for_channels(model: architectures.Model, channels: int) -> architectures.Model:
    grey = channels == 1 and isinstance(model, SwishWideResNet)
    return model.model_copy(update={"normalisation": GREY}) if grey else model


@pytest.mark.parametrize("model", SMALL, ids=show_model)
@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 32), (3, 17)])
def test_forward_and_backward(model, channels, side):
    network = build(for_channels(model, channels), channels=channels, classes=7)
    logits = network(torch.rand(3, channels, side, side))
    assert logits.shape == (3, 7)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("model", SMALL, ids=show_model)
def test_an_image_that_is_too_small_is_refused(model):
    with pytest.raises(ValueError, match=r"needs images of at least . x . pixels, found 3 x 16"):
        build(model, channels=3, classes=7)(torch.rand(2, 3, 3, 16))


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (ResNet(), "ResNet-18"),
        (ResNet(depth=50), "ResNet-50"),
        (ResNet(strided_stages=2), "ResNet-18-s2"),
        (ResNet(width=32, strided_stages=2), "ResNet-18-w32-s2"),
        (ThinResNet(depth=20), "resnet20"),
        (ThinResNet(depth=8, width=4), "resnet8x4"),
        (VGG(depth=8), "vgg8"),
        (MobileNetV2(), "MobileNetV2"),
        (ShuffleNetV1(), "ShuffleV1"),
        (ShuffleNetV2(), "ShuffleV2"),
    ],
)
def test_names_as_papers_print_them(model, name):
    assert show_model(model) == name


def test_a_depth_between_is_refused():
    with pytest.raises(ValueError, match=r"depth must be 6n \+ 2 .*, found 18; take 14"):
        ThinResNet(depth=18)


def test_a_resnet_without_normalisation_is_written_as_ever():
    assert ResNet().model_dump(mode="json") == {"kind": "resnet", "depth": 18, "width": 64}
    normalised = ResNet(depth=50, normalisation=CIFAR100)
    assert ResNet(**normalised.model_dump(mode="json")) == normalised


def test_a_resnet_with_the_usual_strides_is_written_as_ever():
    less_strided = ResNet(strided_stages=2)
    assert ResNet(strided_stages=3) == ResNet()
    assert less_strided.model_dump(mode="json") == {
        "kind": "resnet",
        "depth": 18,
        "width": 64,
        "strided_stages": 2,
    }
    assert ResNet(**less_strided.model_dump(mode="json")) == less_strided


# --- against published code -------------------------------------------------------------------------------

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "models.json").read_text())["networks"]
OURS = {
    "wide-resnet-10-2": (WideResNet(depth=10, width=2), 10),
    "swish-wide-resnet-10-2": (SwishWideResNet(depth=10, width=2, normalisation=CIFAR10), 10),
    "swish-wide-resnet-16-1-cifar100": (SwishWideResNet(depth=16, width=1, normalisation=CIFAR100), 7),
    "resnet-18": (ResNet(), 10),
    "preact-resnet-18": (PreActResNet(), 10),
    "resnet8x4": (ThinResNet(depth=8, width=4), 7),
    "vgg8": (VGG(depth=8), 7),
    "MobileNetV2": (MobileNetV2(), 7),
    "ShuffleV1": (ShuffleNetV1(), 7),
    "ShuffleV2": (ShuffleNetV2(), 7),
    "ResNet50": (ResNet(depth=50), 7),
    "wrn_16_2": (WideResNet(depth=16, width=2), 7),
}


def waves(shape: torch.Size | tuple[int, ...], phase: float) -> Tensor:
    """Entry n = 1, 2, ... is sin(n * (0.7 + phase)), in float64."""
    count = torch.Size(shape).numel()
    return torch.sin(torch.arange(1, count + 1, dtype=torch.float64) * (0.7 + phase)).reshape(shape)


def filled(network: nn.Module) -> nn.Module:
    """`network` in float64; its j-th entry by name holds waves of phase 0.013 j, scaled to what it is."""
    state = {}
    for j, (name, value) in enumerate(sorted(network.state_dict().items())):
        wave, last = waves(value.shape, 0.013 * j), name.rpartition(".")[2]
        match last:
            case "num_batches_tracked":
                state[name] = value
            case "running_mean":
                state[name] = 0.2 * wave
            case "running_var":
                state[name] = 1 + 0.5 * wave
            case _ if value.ndim == 1:
                state[name] = 0.1 * wave + (last == "weight")
            case _:
                state[name] = 2 * wave / value[0].numel() ** 0.5
    network.double().load_state_dict(state)
    return network


def exact_to(name, mode):
    """How far float64 may be from the golden numbers.

    Waves are matrices of rank two, so that batch norms deep in ResNet-50 divide by next to nothing in training:
    a change of the input comes out 7e10 times as large (measured), and so does rounding, which differs between
    processors. In eval mode the same weights are exact.
    """
    return 5e-3 if (name, mode) == ("ResNet50", "train") else 1e-9


@pytest.mark.parametrize("name", GOLDEN)
def test_logits_of_published_code(name):
    model, classes = OURS[name]
    network = filled(build(model, channels=3, classes=classes))
    x = 0.5 + 0.5 * waves((2, 3, 32, 32), 0.11)
    with torch.no_grad():
        for mode, logits in (("eval", network.eval()(x)), ("train", network.train()(x))):
            expected = torch.tensor(GOLDEN[name][f"{mode}_logits"], dtype=torch.float64)
            torch.testing.assert_close(logits, expected, rtol=0, atol=exact_to(name, mode))


@pytest.mark.parametrize("name", [name for name in GOLDEN if "taps" in GOLDEN[name]])
def test_features_of_published_code(name):
    model, classes = OURS[name]
    network, expected = filled(build(model, channels=3, classes=classes)), GOLDEN[name]["taps"]
    with torch.no_grad():
        taps = tapped(network.train(), 0.5 + 0.5 * waves((2, 3, 32, 32), 0.11))
    found = {"maps": taps.maps, "preacts": taps.preacts, "pooled": [taps.pooled_BW]}
    for stem, maps in found.items():
        means = torch.stack([values.square().mean() for values in maps])
        near = 1e-3 if name == "ResNet50" else 1e-6  # as `exact_to` explains
        torch.testing.assert_close(means, torch.tensor(expected[stem]).double().view(-1), rtol=near, atol=0)


def test_wide_resnet_has_the_names_of_trades_and_robustbench():
    names = build(WideResNet(depth=10, width=2), channels=3, classes=7).state_dict().keys()
    batch_norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    block = ["conv1.weight", "conv2.weight", "convShortcut.weight"]
    block += [f"{bn}.{entry}" for bn in ("bn1", "bn2") for entry in batch_norm]
    expected = {"conv1.weight", "fc.weight", "fc.bias", *(f"bn1.{entry}" for entry in batch_norm)}
    expected |= {f"block{stage}.layer.0.{name}" for stage in (1, 2, 3) for name in block}
    assert names == expected


def test_wide_resnet_starts_as_published():
    torch.manual_seed(0)
    network = build(WideResNet(depth=10, width=4), channels=3, classes=7)
    kernel = network.block3.layer[0].conv2.weight
    assert kernel.std().item() == pytest.approx((2 / (3 * 3 * 256)) ** 0.5, rel=0.01)
    assert (network.fc.bias == 0).all()
    assert (network.bn1.weight == 1).all()


def test_the_swish_network_has_the_names_of_robustbench_and_dm_at():
    names = list(build(SWISH, channels=3, classes=7).state_dict())
    batch_norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    expected = ["init_conv.weight"]
    for stage in range(3):
        block = f"layer.{stage}.block.0."
        for i in range(2):
            expected += [f"{block}batchnorm_{i}.{entry}" for entry in batch_norm] + [f"{block}conv_{i}.weight"]
        expected += [f"{block}shortcut.weight"] * (stage > 0)  # the first stage of width 1 has the stem's channels
    assert names == [*expected, *(f"batchnorm.{entry}" for entry in batch_norm), "logits.weight", "logits.bias"]


def test_the_swish_network_starts_as_published():
    torch.manual_seed(0)
    network = build(SWISH.model_copy(update={"width": 4}), channels=3, classes=7)
    kernel = network.layer[2].block[0].conv_1.weight
    assert kernel.std().item() == pytest.approx((2 / (3 * 3 * 256)) ** 0.5, rel=0.01)
    assert (network.logits.bias == 0).all()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.01, 1e-5)}


def test_a_normalisation_for_other_images_is_refused():
    for model in (SWISH, TimmModel(name="resnet18", normalisation=CIFAR10)):
        with pytest.raises(ValueError, match="normalisation has 3 means, the images have 1 channels"):
            build(model, channels=1, classes=7)


@pytest.mark.parametrize("model", SMALL, ids=show_model)
def test_folded_batch_norms_leave_the_logits(model):
    network = filled(build(model, channels=3, classes=5)).eval()
    folded = fuse(network)
    count = [sum(isinstance(m, nn.BatchNorm2d) for m in some.modules()) for some in (folded, network)]
    assert count[0] < count[1]
    for side in (32, 17):  # traced once, for every size
        x = 0.5 + 0.5 * waves((2, 3, side, side), 0.11)
        torch.testing.assert_close(folded(x), network(x), rtol=1e-10, atol=1e-10)


# --- modes ------------------------------------------------------------------------------------------------


def test_eval_mode_puts_every_module_back_as_it_was():
    network = build(CNN(width=4), channels=1, classes=3)
    network.bn1.eval()  # frozen by somebody
    with eval_mode(network):
        assert not any(module.training for module in network.modules())
    assert network.training
    assert network.bn2.training
    assert not network.bn1.training


def modes_of(network: nn.Module) -> list[tuple[object, ...]]:
    entries = ("training", "track_running_stats", "momentum")
    return [tuple(getattr(module, entry, None) for entry in entries) for module in network.modules()]


@pytest.mark.parametrize("model", SMALL, ids=show_model)
def test_batch_mode_computes_with_the_batch_and_keeps_nothing(model):
    network = build(model, channels=3, classes=5).eval()
    next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d)).train()  # thawed by somebody
    before, state, x = (
        modes_of(network),
        {k: v.clone() for k, v in network.state_dict().items()},
        torch.rand(6, 3, 8, 8),
    )
    with batch_mode(network):
        assert all(module.training for module in network.modules())
        logits = network(x)
    assert modes_of(network) == before
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())
    assert torch.equal(logits, network.train()(x))
    assert not all(torch.equal(state[name], value) for name, value in network.state_dict().items())


def test_batch_mode_ends_with_an_error_too():
    network = build(SWISH, channels=3, classes=5).eval()
    before = modes_of(network)
    with pytest.raises(FloatingPointError), batch_mode(network), first_update(network):
        raise FloatingPointError
    assert modes_of(network) == before


def test_a_batch_norm_of_its_owner_is_left_alone():
    """One that never tracks stays so, and one that is no torch class is asked by its attribute."""

    class Synchronised(nn.Module):
        track_running_stats = True

    network = nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False), Synchronised())
    with batch_mode(network):
        assert [module.track_running_stats for module in network] == [False, False]
    assert [module.track_running_stats for module in network] == [False, True]


def test_the_first_update_keeps_the_statistics_of_its_batch():
    network = build(SWISH, channels=3, classes=5)
    x = torch.rand(6, 3, 8, 8)
    into = network.init_conv(
        (x - torch.tensor(CIFAR10.mean).view(3, 1, 1)) / torch.tensor(CIFAR10.std).view(3, 1, 1)
    )
    norm = network.layer[0].block[0].batchnorm_0
    batch_mean, batch_var = into.mean((0, 2, 3)), into.transpose(0, 1).flatten(1).var(dim=1)
    with first_update(nn.Sequential(network)):
        network(x)
    torch.testing.assert_close(norm.running_mean, batch_mean)
    torch.testing.assert_close(norm.running_var, batch_var)
    network(0 * x)  # from the second on, one hundredth
    empty = network.init_conv(network.normalise(0 * x)).mean((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, 0.99 * batch_mean + 0.01 * empty)


def test_the_first_update_of_other_networks_is_like_any_other():
    network = build(WideResNet(depth=10, width=1), channels=3, classes=5)
    before = modes_of(network)
    with first_update(network):
        assert modes_of(network) == before


# --- timm -------------------------------------------------------------------------------------------------


def test_a_timm_network_is_timms_after_its_normalisation():
    model = TimmModel(name="resnet18", normalisation=GREY)
    torch.manual_seed(0)
    ours = build(model, channels=1, classes=7).eval()
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model("resnet18", num_classes=7, in_chans=1).eval()
    x = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(ours(x), theirs((x - 0.4) / 0.2))
    assert [f"model.{name}" for name in theirs.state_dict()] == list(ours.state_dict())


def test_a_vision_transformer_is_built_for_the_size_of_the_images():
    pytest.importorskip("timm")
    network = build(TimmModel(name="vit_tiny_patch16_224", image_size=32), channels=3, classes=7)
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 7)
    with torch.device("meta"):
        network = build(TimmModel(name="vit_tiny_patch16_224"), channels=3, classes=7)
    with pytest.raises(
        ValueError, match=r"built for images of 224 x 224 pixels, found 32 x 32; set model.image_size=32"
    ):
        network(torch.rand(2, 3, 32, 32, device="meta"))


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ({"name": "resnet5"}, r"timm has no architecture 'resnet5'; did you mean resnet50"),
        ({"name": "zzzzzzzz"}, r"timm has no architecture 'zzzzzzzz'; see timm.list_models"),
        ({"name": "resnet18", "image_size": 32}, "resnet18 takes images of any size; leave out model.image_size"),
        (
            {"name": "xcit_nano_12_p8_224", "image_size": 30},
            "cannot build xcit_nano_12_p8_224 for images of 30 x 30 pixels and 3 channels: .*divide.*; choose",
        ),
    ],
)
def test_what_timm_cannot_build_gets_one_sentence(wanted, sentence):
    pytest.importorskip("timm")
    with torch.device("meta"), pytest.raises(ValueError, match=sentence):
        build(TimmModel(**wanted), channels=3, classes=7)


def test_without_timm_a_sentence_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)  # what Python itself does for a package that is absent
    with pytest.raises(ValueError, match=r"need the package timm: pip install 'dkl-bench\[worker\]'"):
        build(TimmModel(name="resnet18"), channels=3, classes=7)


# --- a published checkpoint -------------------------------------------------------------------------------


def _pyautoattack_examples() -> Path | None:
    package = importlib.util.find_spec("pyautoattack")
    folder = package and Path(package.submodule_search_locations[0]) / "examples"
    return folder if folder and (folder / "model_test.pt").exists() else None


@pytest.mark.skipif(_pyautoattack_examples() is None, reason="pyautoattack's model_test.pt is not installed")
def test_a_published_resnet_18_loads_and_agrees_with_its_own_code():
    folder = _pyautoattack_examples()
    weights = torch.load(folder / "model_test.pt", map_location="cpu", weights_only=True)
    ours = build(ResNet(), channels=3, classes=10).eval()
    ours.load_state_dict(weights, strict=True)

    spec = importlib.util.spec_from_file_location("pyautoattack_example_resnet", folder / "resnet.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    theirs = module.ResNet18().eval()
    theirs.load_state_dict(weights, strict=True)

    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_a_checkpoint_as_repdistiller_saves_it_becomes_ours(tmp_path):
    model = ThinResNet(depth=8, width=4, normalisation=CIFAR100)
    network = filled(build(model, channels=3, classes=100)).float()
    torch.save({"epoch": 240, "model": network.state_dict(), "best_acc": 72.5}, tmp_path / "resnet8x4_best.pth")
    target = tmp_path / "model.safetensors"
    converted = convert(tmp_path / "resnet8x4_best.pth", target, architecture=model, dataset="cifar100")
    loaded = load_checkpoint(target)
    assert (converted.notes, loaded.classes, loaded.architecture) == ((), 100, "resnet8x4")
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(loaded.model(x), network.eval()(x))


# --- torchvision ------------------------------------------------------------------------------------------


def test_a_torchvision_network_is_torchvisions_after_its_normalisation():
    models = pytest.importorskip("torchvision.models")
    normalisation = Normalisation(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))
    torch.manual_seed(0)
    ours = build(TorchvisionModel(name="shufflenet_v2_x0_5", normalisation=normalisation), channels=3, classes=7)
    torch.manual_seed(0)
    theirs = models.shufflenet_v2_x0_5(num_classes=7).eval()
    x = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (normalisation.mean, normalisation.std))
    assert torch.equal(ours.eval()(x), theirs((x - mean) / std))


def test_torchvisions_networks_give_nothing_but_logits_in_training():
    pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        network = build(TorchvisionModel(name="googlenet"), channels=3, classes=7)
        assert network.train()(torch.rand(2, 3, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize(
    ("wanted", "channels", "sentence"),
    [
        ({"name": "resnet5"}, 3, "torchvision has no classifier 'resnet5'; did you mean resnet50"),
        ({"name": "resnet18"}, 1, "take images of 3 channels, found 1; take the architecture from timm"),
        (
            {"name": "resnet18", "image_size": 32},
            3,
            "resnet18 takes images of any size; leave out model.image_size",
        ),
        ({"name": "vit_b_16", "image_size": 33}, 3, "torchvision cannot build vit_b_16: Input shape indivisible"),
        ({"name": "regnet_x_8gf"}, 3, "take it from timm, which has the RegNets as well"),
    ],
)
def test_what_torchvision_cannot_build_gets_one_sentence(wanted, channels, sentence):
    pytest.importorskip("torchvision.models")
    with torch.device("meta"), pytest.raises(ValueError, match=sentence):
        build(TorchvisionModel(**wanted), channels=channels, classes=7)


def test_a_vision_transformer_of_torchvision_has_to_know_the_size():
    pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        network = build(TorchvisionModel(name="vit_b_16"), channels=3, classes=7)
        with pytest.raises(ValueError, match="built for images of 224 x 224 pixels, found 32 x 32; set"):
            network(torch.rand(2, 3, 32, 32))
