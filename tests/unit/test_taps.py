"""Features on the way to the logits: shapes as in the papers' code, and a pass that is otherwise the same."""

import copy

import pytest
import torch
from test_models import CIFAR10, SMALL, filled, waves
from torch import nn

from dkl import architectures
from dkl.architectures import (
    CNN,
    VGG,
    MobileNetV2,
    PreActResNet,
    ResNet,
    ShuffleNetV1,
    ShuffleNetV2,
    ThinResNet,
    TimmModel,
    WideResNet,
    show_model,
)
from dkl.models import Taps, build, last_norms, tapped
from dkl.preprocessing import Geometry, Preprocessed

TIMM = [
    TimmModel(name=name, normalisation=CIFAR10)
    for name in ("resnet18", "mobilenetv1_100", "mobilenetv2_050", "regnetx_002")
]


def taps_of(model: architectures.Model, side: int) -> Taps:
    with torch.no_grad():
        return tapped(build(model, channels=3, classes=5), torch.rand(2, 3, side, side))


def sizes(taps: Taps) -> tuple[list[tuple[int, int]], int]:
    """(channels, side) of each map, and the width of what the last layer sees."""
    return [(m.shape[1], m.shape[3]) for m in taps.maps], taps.pooled_BW.shape[1]


THIN = ([(16, 32), (16, 32), (32, 16), (64, 8)], 64)
WIDE = ([(32, 32), (64, 32), (128, 16), (256, 8)], 256)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (ThinResNet(depth=20), THIN),
        (ThinResNet(depth=8, width=4), WIDE),
        (WideResNet(depth=16, width=2), ([(16, 32), (32, 32), (64, 16), (128, 8)], 128)),
        (WideResNet(depth=40, width=1), THIN),
        (VGG(depth=8), ([(64, 32), (128, 16), (256, 8), (512, 4), (512, 4)], 512)),
        (VGG(depth=13), ([(64, 32), (128, 16), (256, 8), (512, 4), (512, 4)], 512)),
        (ShuffleNetV1(), ([(24, 32), (240, 16), (480, 8), (960, 4)], 960)),
        (ShuffleNetV2(), ([(24, 32), (116, 16), (232, 8), (464, 4)], 1024)),
        (MobileNetV2(), ([(16, 16), (12, 16), (16, 8), (48, 4), (160, 2)], 1280)),
        (ResNet(depth=50), ([(64, 32), (256, 32), (512, 16), (1024, 8), (2048, 4)], 2048)),
        (ResNet(), ([(64, 32), (64, 32), (128, 16), (256, 8), (512, 4)], 512)),
        (ResNet(strided_stages=2), ([(64, 32), (64, 32), (128, 32), (256, 16), (512, 8)], 512)),
        (PreActResNet(width=8), ([(8, 32), (8, 32), (16, 16), (32, 8), (64, 4)], 64)),
        (CNN(width=4), ([(4, 32), (8, 16)], 128)),
    ],
    ids=lambda value: show_model(value) if isinstance(value, architectures.Document) else "",
)
def test_features_have_the_papers_shapes(model, expected):
    taps = taps_of(model, 32)
    assert sizes(taps) == expected
    assert [p.shape for p in taps.preacts] == [m.shape for m in taps.maps[1:]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", ([(64, 32), (64, 16), (128, 8), (256, 4), (512, 2)], 512)),
        ("resnet34", ([(64, 32), (64, 16), (128, 8), (256, 4), (512, 2)], 512)),
        ("resnet50", ([(64, 32), (256, 16), (512, 8), (1024, 4), (2048, 2)], 2048)),
        ("mobilenetv1_100", ([(64, 32), (128, 16), (256, 8), (512, 4), (1024, 2)], 1024)),
    ],
)
def test_features_of_imagenets_networks(name, expected):
    """At 224 pixels sides are 3.5 times as long."""
    pytest.importorskip("timm")
    assert sizes(taps_of(TimmModel(name=name), 64)) == expected


@pytest.mark.parametrize("model", [*SMALL, *TIMM], ids=show_model)
def test_a_pass_with_taps_is_the_same_pass(model):
    """The same logits, gradients and running statistics."""
    network = build(model, channels=3, classes=5).double()
    other = copy.deepcopy(network)
    x = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    tapped(other.eval(), x[:1])
    other.train()
    logits, taps = network(x), tapped(other, x)
    torch.testing.assert_close(taps.logits_BK, logits, rtol=1e-12, atol=1e-12)
    logits.square().sum().backward()
    taps.logits_BK.square().sum().backward()
    for (name, expected), found in zip(network.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, msg=lambda m, n=name: f"{n}: {m}")
    statistics = other.state_dict()
    for name, expected in network.state_dict().items():
        torch.testing.assert_close(statistics[name], expected, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("model", [*SMALL, *TIMM], ids=show_model)
def test_gradients_reach_every_stage(model):
    network = build(model, channels=3, classes=5)
    taps = tapped(network, torch.rand(3, 3, 32, 32))
    for feature in (*taps.maps, *taps.preacts, taps.pooled_BW):
        network.zero_grad()
        feature.square().sum().backward(retain_graph=True)
        first = next(network.parameters())
        assert first.grad is not None
        assert first.grad.abs().max() > 0


ENDS_WITH_RELU = [ResNet(width=4), ThinResNet(depth=8), VGG(depth=8), ShuffleNetV1(), ShuffleNetV2(), CNN(width=4)]
ENDS_WITH_RELU += [TIMM[0], TIMM[-1]]


@pytest.mark.parametrize("model", ENDS_WITH_RELU, ids=show_model)
def test_maps_are_activated_pre_activations(model):
    network = filled(build(model, channels=3, classes=5))
    taps = tapped(network, torch.rand(3, 3, 32, 32, dtype=torch.float64))
    for activated, preact in zip(taps.maps[1:], taps.preacts, strict=True):
        assert preact.min() < 0
        torch.testing.assert_close(activated, preact.relu())


@pytest.mark.parametrize("model", [*SMALL, *TIMM], ids=show_model)
def test_norms_have_the_channels_of_the_pre_activations(model):
    network = filled(build(model, channels=3, classes=5))
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    norms, preacts = last_norms(network, x), tapped(network, x).preacts
    assert [norm.weight_C.shape for norm in norms] == [preact.shape[1:2] for preact in preacts]
    assert [norm.bias_C.shape for norm in norms] == [preact.shape[1:2] for preact in preacts]


def test_norms_say_how_pre_activations_are_distributed():
    network = filled(build(WideResNet(depth=10, width=1), channels=3, classes=5)).train()
    x = 0.5 + 0.5 * waves((8, 3, 16, 16), 0.11)
    norms, preacts = last_norms(network, x), tapped(network, x).preacts
    for norm, preact in zip(norms, preacts, strict=True):
        torch.testing.assert_close(preact.mean((0, 2, 3)), norm.bias_C, rtol=0, atol=1e-8)
        spread = preact.var((0, 2, 3), correction=0).sqrt()
        torch.testing.assert_close(spread, norm.weight_C.abs(), rtol=0.05, atol=0)


def test_a_wrapper_hands_its_pixels_on():
    network = build(ThinResNet(depth=8), channels=3, classes=5).eval()
    around = Preprocessed(network, (0.5, 0.4, 0.3), (0.2, 0.2, 0.3), Geometry(20, 16, "bilinear")).eval()
    x = torch.rand(2, 3, 32, 32)
    taps = tapped(around, x)
    torch.testing.assert_close(taps.logits_BK, around(x))
    assert taps.maps[0].shape == (2, 16, 16, 16)
    torch.testing.assert_close(last_norms(around, x)[0].weight_C, network.layer1[0].bn2.weight.data)


def test_timms_own_networks_offer_theirs():
    timm = pytest.importorskip("timm")
    network = timm.create_model("resnet18", num_classes=5).eval()
    x = torch.rand(2, 3, 64, 64)
    features = network.forward_intermediates(x, intermediates_only=True)
    taps = tapped(Preprocessed(network, (0.0,) * 3, (1.0,) * 3), x)
    for found, expected in zip(taps.maps, features, strict=True):
        torch.testing.assert_close(found, expected)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_a_network_without_maps_gets_one_sentence():
    with pytest.raises(ValueError, match=r"^Linear offers no features to compare; distil its logits with kd"):
        tapped(nn.Linear(3, 2), torch.rand(1, 3))
    with pytest.raises(ValueError, match="Linear offers no features"):
        last_norms(nn.Linear(3, 2), torch.rand(1, 3))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_transformers_offer_no_maps(name):
    pytest.importorskip("timm")
    model = TimmModel(name=name, image_size=64)
    network = build(model, channels=3, classes=5)
    with pytest.raises(ValueError, match="Transformer offers no features to compare"):
        tapped(network, torch.rand(1, 3, 64, 64))
    assert network.training


def test_a_network_without_batch_norms_has_no_margins():
    pytest.importorskip("timm")
    network = build(TimmModel(name="convnext_atto"), channels=3, classes=5)
    x = torch.rand(2, 3, 64, 64)
    assert len(tapped(network, x).maps) == 4
    with pytest.raises(
        ValueError, match=r"ConvNeXt has no batch norm at the end of stages.1, which .*'ofd' needs"
    ):
        last_norms(network, x)
