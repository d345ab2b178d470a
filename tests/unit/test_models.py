"""Architectures: published sizes, published parameter names, and a published checkpoint."""

import importlib.util
from pathlib import Path

import pytest
import torch

from dkl import recipes
from dkl.models import build, eval_mode

SMALL = [
    recipes.CNN(width=4),
    recipes.ResNet(width=4),
    recipes.PreActResNet(width=4),
    recipes.WideResNet(depth=10, width=1),
    recipes.WideResNet(depth=16, width=2, activation="silu"),
]


def parameters(model: recipes.Model, classes: int) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build(model, channels=3, classes=classes).parameters())


def test_parameter_counts_as_published():
    assert parameters(recipes.WideResNet(depth=34, width=10), 10) == 46_160_474
    assert parameters(recipes.WideResNet(depth=34, width=10), 100) == 46_218_164
    assert parameters(recipes.WideResNet(depth=28, width=10, activation="silu"), 10) == 36_479_194
    assert parameters(recipes.ResNet(), 10) == 11_173_962
    assert parameters(recipes.PreActResNet(), 10) == 11_172_170  # 11,171,146 without the last batch norm


@pytest.mark.parametrize("model", SMALL, ids=recipes.show_model)
@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 32), (3, 17)])
def test_forward_and_backward(model, channels, side):
    network = build(model, channels=channels, classes=7)
    logits = network(torch.rand(3, channels, side, side))
    assert logits.shape == (3, 7)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("model", SMALL, ids=recipes.show_model)
def test_an_image_that_is_too_small_is_refused(model):
    with pytest.raises(ValueError, match=r"needs images of at least . x . pixels, found 3 x 16"):
        build(model, channels=3, classes=7)(torch.rand(2, 3, 3, 16))


def test_wide_resnet_has_the_names_of_trades_and_robustbench():
    names = build(recipes.WideResNet(depth=10, width=2), channels=3, classes=7).state_dict().keys()
    batch_norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    block = ["conv1.weight", "conv2.weight", "convShortcut.weight"]
    block += [f"{bn}.{entry}" for bn in ("bn1", "bn2") for entry in batch_norm]
    expected = {"conv1.weight", "fc.weight", "fc.bias", *(f"bn1.{entry}" for entry in batch_norm)}
    expected |= {f"block{stage}.layer.0.{name}" for stage in (1, 2, 3) for name in block}
    assert names == expected


def test_wide_resnet_starts_as_published():
    torch.manual_seed(0)
    network = build(recipes.WideResNet(depth=10, width=4), channels=3, classes=7)
    kernel = network.block3.layer[0].conv2.weight
    assert kernel.std().item() == pytest.approx((2 / (3 * 3 * 256)) ** 0.5, rel=0.01)
    assert (network.fc.bias == 0).all()
    assert (network.bn1.weight == 1).all()


def test_the_activation_is_the_one_asked_for():
    x = torch.rand(2, 3, 8, 8)
    outputs = []
    for activation in ("relu", "silu"):
        torch.manual_seed(0)
        outputs.append(
            build(recipes.WideResNet(depth=10, width=1, activation=activation), channels=3, classes=4)(x)
        )
    assert not torch.allclose(*outputs)


def test_eval_mode_puts_every_module_back_as_it_was():
    network = build(recipes.CNN(width=4), channels=1, classes=3)
    network.bn1.eval()  # frozen by somebody
    with eval_mode(network):
        assert not any(module.training for module in network.modules())
    assert network.training
    assert network.bn2.training
    assert not network.bn1.training


def _pyautoattack_examples() -> Path | None:
    package = importlib.util.find_spec("pyautoattack")
    folder = package and Path(package.submodule_search_locations[0]) / "examples"
    return folder if folder and (folder / "model_test.pt").exists() else None


@pytest.mark.skipif(_pyautoattack_examples() is None, reason="pyautoattack's model_test.pt is not installed")
def test_a_published_resnet_18_loads_and_agrees_with_its_own_code():
    folder = _pyautoattack_examples()
    weights = torch.load(folder / "model_test.pt", map_location="cpu", weights_only=True)
    ours = build(recipes.ResNet(), channels=3, classes=10).eval()
    ours.load_state_dict(weights, strict=True)

    spec = importlib.util.spec_from_file_location("pyautoattack_example_resnet", folder / "resnet.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    theirs = module.ResNet18().eval()
    theirs.load_state_dict(weights, strict=True)

    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)
