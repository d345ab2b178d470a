"""The architectures of `dkl.recipes` as modules: x_BCHW in [0, 1] -> logits_BK.

Parameter names are those of the published checkpoints, so that these load. No model normalises its input.
Shapes: B batch, C channels, H, W pixels, K classes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, assert_never

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, relu, silu

from dkl import recipes


def build(model: recipes.Model, *, channels: int, classes: int) -> nn.Module:
    """A freshly initialised network for images of `channels` channels, in training mode, on the default device.

    The weights come from torch's global generator. Its forward raises ValueError for images that are too small.
    """
    match model:
        case recipes.CNN():
            return CNN(channels, classes, model.width)
        case recipes.ResNet():
            return ResNet(channels, classes, model.width)
        case recipes.PreActResNet():
            return PreActResNet(channels, classes, model.width)
        case recipes.WideResNet():
            return WideResNet(channels, classes, model.depth, model.width, _activation(model.activation))
        case _:
            assert_never(model)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Inside, every module is in eval mode; afterwards each is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


Activation = Callable[[Tensor], Tensor]


def _activation(name: Literal["relu", "silu"]) -> Activation:
    match name:
        case "relu":
            return relu
        case "silu":
            return silu
        case _:
            assert_never(name)


def _conv3x3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)


def _conv1x1(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)


@torch.fx.wrap  # a check of its argument, which tracing must not look into
def _require_side(x_BCHW: Tensor, least: int, who: str) -> None:
    height, width = x_BCHW.shape[-2:]
    if min(height, width) < least:
        raise ValueError(f"{who} needs images of at least {least} x {least} pixels, found {height} x {width}")


class CNN(nn.Module):
    """Two 3x3 convolutions, the second strided, and a linear head on a 4 x 4 grid; 8 x 8 images fill it."""

    def __init__(self, channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, 2 * width, stride=2)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.linear = nn.Linear(2 * width * 4 * 4, classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        _require_side(x_BCHW, 7, "CNN")
        out = relu(self.bn1(self.conv1(x_BCHW)))
        out = relu(self.bn2(self.conv2(out)))
        return self.linear(adaptive_avg_pool2d(out, 4).flatten(1))


Block = Callable[[int, int, int], nn.Module]
"""(channels in, channels out, stride) -> module"""


def _stage(block: Block, channels_in: int, channels_out: int, stride: int, blocks: int) -> nn.Sequential:
    """`blocks` blocks in a row, of which the first changes the number of channels and takes the stride."""
    rest = [block(channels_out, channels_out, 1) for _ in range(blocks - 1)]
    return nn.Sequential(block(channels_in, channels_out, stride), *rest)


class _PostActBlock(nn.Module):
    """relu(shortcut(x) + bn(conv(relu(bn(conv(x))))))"""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels_in, channels_out, stride)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = _conv3x3(channels_out, channels_out)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                _conv1x1(channels_in, channels_out, stride), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = relu(self.bn1(self.conv1(x)))
        return relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet-18 for small images: a 3x3 stem without pooling, four stages of two blocks, a mean over the pixels.

    Source: arXiv:1512.03385, in the form that CIFAR papers train.
    """

    def __init__(self, channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(_PostActBlock, width, width, 1, blocks=2)
        self.layer2 = _stage(_PostActBlock, width, 2 * width, 2, blocks=2)
        self.layer3 = _stage(_PostActBlock, 2 * width, 4 * width, 2, blocks=2)
        self.layer4 = _stage(_PostActBlock, 4 * width, 8 * width, 2, blocks=2)
        self.linear = nn.Linear(8 * width, classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        _require_side(x_BCHW, 8, "ResNet")
        out = relu(self.bn1(self.conv1(x_BCHW)))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return self.linear(out.mean((2, 3)))


class _PreActBlock(nn.Module):
    """shortcut + conv(relu(bn(conv(relu(bn(x)))))); a projecting shortcut starts after the first bn and relu."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = _conv3x3(channels_in, channels_out, stride)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.conv2 = _conv3x3(channels_out, channels_out)
        self.shortcut = None
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(_conv1x1(channels_in, channels_out, stride))

    def forward(self, x: Tensor) -> Tensor:
        out = relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        return shortcut + self.conv2(relu(self.bn2(self.conv1(out))))


class PreActResNet(nn.Module):
    """PreActResNet-18 for small images, with the batch norm and ReLU that end a pre-activation network.

    Source: arXiv:1603.05027, with the parameter names of Rice et al., arXiv:2002.11569. Some published code
    (TRADES) leaves the last batch norm and ReLU out.
    """

    def __init__(self, channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels, width)
        self.layer1 = _stage(_PreActBlock, width, width, 1, blocks=2)
        self.layer2 = _stage(_PreActBlock, width, 2 * width, 2, blocks=2)
        self.layer3 = _stage(_PreActBlock, 2 * width, 4 * width, 2, blocks=2)
        self.layer4 = _stage(_PreActBlock, 4 * width, 8 * width, 2, blocks=2)
        self.bn = nn.BatchNorm2d(8 * width)
        self.linear = nn.Linear(8 * width, classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        _require_side(x_BCHW, 8, "PreActResNet")
        out = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x_BCHW)))))
        return self.linear(relu(self.bn(out)).mean((2, 3)))


class _WideBlock(nn.Module):
    """shortcut + conv(act(bn(conv(act(bn(x)))))); a projecting shortcut starts after the first bn and act."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, act: Activation) -> None:
        super().__init__()
        self.act = act
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = _conv3x3(channels_in, channels_out, stride)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.conv2 = _conv3x3(channels_out, channels_out)
        self.convShortcut = None if channels_in == channels_out else _conv1x1(channels_in, channels_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(out)
        return shortcut + self.conv2(self.act(self.bn2(self.conv1(out))))


class _WideStage(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, stride: int, act: Activation, blocks: int) -> None:
        super().__init__()

        def block(block_in: int, block_out: int, block_stride: int) -> nn.Module:
            return _WideBlock(block_in, block_out, block_stride, act)

        self.layer = _stage(block, channels_in, channels_out, stride, blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """WRN-depth-width: three stages of (depth - 4) / 6 pre-activation blocks, no dropout.

    Convolutions start from N(0, 2 / (kernel area * channels out)), linear biases from 0.

    Source: arXiv:1605.07146, with the parameter names of TRADES and RobustBench.
    """

    def __init__(self, channels: int, classes: int, depth: int, width: int, act: Activation) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.act = act
        self.conv1 = _conv3x3(channels, 16)
        self.block1 = _WideStage(16, 16 * width, 1, act, blocks)
        self.block2 = _WideStage(16 * width, 32 * width, 2, act, blocks)
        self.block3 = _WideStage(32 * width, 64 * width, 2, act, blocks)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        _require_side(x_BCHW, 4, "WideResNet")
        out = self.block3(self.block2(self.block1(self.conv1(x_BCHW))))
        return self.fc(self.act(self.bn1(out)).mean((2, 3)))
