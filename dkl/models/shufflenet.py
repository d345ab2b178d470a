"""ShuffleNet and ShuffleNetV2 for small images.

Shapes: B batch, C channels, H, W pixels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, channel_shuffle, relu

from dkl.documents import Normalisation
from dkl.models import layers
from dkl.models.taps import Norm, Taps, norm_of, through

_STEM = 24


# --- V1 ---------------------------------------------------------------------------------------------------

_GROUPS = 3


class _GroupedBlock(nn.Module):
    """Grouped 1x1, 3x3 within each channel, grouped 1x1; then x is added, or its mean put beside for stride 2."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, groups_in: int) -> None:
        super().__init__()
        self.groups_in = groups_in
        self.strided = stride == 2
        grown = channels_out - channels_in if self.strided else channels_out
        inside = grown // 4
        self.conv1 = nn.Conv2d(channels_in, inside, 1, groups=groups_in, bias=False)
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv2 = nn.Conv2d(inside, inside, 3, stride, padding=1, groups=inside, bias=False)
        self.bn2 = nn.BatchNorm2d(inside)
        self.conv3 = nn.Conv2d(inside, grown, 1, groups=_GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(grown)

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.before_relu(x), inplace=True)

    def before_relu(self, x: Tensor) -> Tensor:
        out = relu(self.bn1(self.conv1(x)), inplace=True)
        out = relu(self.bn2(self.conv2(channel_shuffle(out, self.groups_in))), inplace=True)
        out = self.bn3(self.conv3(out))
        return torch.cat([out, avg_pool2d(x, 3, 2, padding=1)], dim=1) if self.strided else out.add_(x)


class ShuffleNetV1(nn.Module):
    """ShuffleNet with three groups: a 1x1 stem, three stages of 4, 8 and 4 blocks, each halving the sides.

    Source: arXiv:1707.01083, with the shape and the parameter names of RepDistiller and mdistiller, for 32 x 32
    pixels.
    """

    def __init__(self, channels: int, classes: int, normalisation: Normalisation | None) -> None:
        super().__init__()
        self.normalise = layers.normalise(normalisation, channels)
        self.conv1 = layers.conv1x1(channels, _STEM)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.layer1 = _grouped_stage(_STEM, 240, blocks=4, groups_in=1)
        self.layer2 = _grouped_stage(240, 480, blocks=8, groups_in=_GROUPS)
        self.layer3 = _grouped_stage(480, 960, blocks=4, groups_in=_GROUPS)
        self.linear = nn.Linear(960, classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out = self.layer3(self.layer2(self.layer1(self._stem(x_BCHW))))
        logits_BK: Tensor = self.linear(out.mean((2, 3)))
        return logits_BK

    def _stem(self, x_BCHW: Tensor) -> Tensor:
        layers.require_side(x_BCHW, 8, "ShuffleNetV1")
        return relu(self.bn1(self.conv1(self.normalise(x_BCHW))), inplace=True)

    def tapped(self, x_BCHW: Tensor) -> Taps:
        stem = self._stem(x_BCHW)
        out, maps, preacts = through(stem, [self.layer1, self.layer2, self.layer3])
        pooled_BW = out.mean((2, 3))
        return Taps(self.linear(pooled_BW), (stem, *maps), preacts, pooled_BW)

    def last_norms(self) -> tuple[Norm, ...]:
        return tuple(norm_of(stage[-1].bn3) for stage in (self.layer1, self.layer2, self.layer3))


def _grouped_stage(channels_in: int, channels_out: int, blocks: int, groups_in: int) -> nn.Sequential:
    rest = [_GroupedBlock(channels_out, channels_out, 1, _GROUPS) for _ in range(blocks - 1)]
    return nn.Sequential(_GroupedBlock(channels_in, channels_out, 2, groups_in), *rest)


# --- V2 ---------------------------------------------------------------------------------------------------


class _HalvedBlock(nn.Module):
    """Half of the channels are kept, the others go through 1x1, 3x3 within each, 1x1; then all are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = layers.conv1x1(half, half)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = layers.conv1x1(half, half)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x.chunk(2, dim=1)
        return _shuffled(kept, relu(self._changed(changed), inplace=True))

    def before_relu(self, x: Tensor) -> Tensor:
        """The kept half went through a ReLU in a block before: another changes nothing."""
        kept, changed = x.chunk(2, dim=1)
        return _shuffled(kept, self._changed(changed))

    def _changed(self, x: Tensor) -> Tensor:
        out = relu(self.bn1(self.conv1(x)), inplace=True)
        changed: Tensor = self.bn3(self.conv3(self.bn2(self.conv2(out))))
        return changed

    def last_norm(self) -> Norm:
        """Kept channels are never negative; N(0, 0) says so."""
        weight_C, bias_C = norm_of(self.bn3)
        none_C = torch.zeros_like(weight_C)
        return Norm(torch.stack([none_C, weight_C], 1).flatten(), torch.stack([none_C, bias_C], 1).flatten())


class _HalvingBlock(nn.Module):
    """Twice the channels on half the sides: two branches from all of x, side by side, then shuffled."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        half = channels_out // 2
        self.conv1 = nn.Conv2d(channels_in, channels_in, 3, 2, padding=1, groups=channels_in, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv2 = layers.conv1x1(channels_in, half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = layers.conv1x1(channels_in, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, 2, padding=1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = layers.conv1x1(half, half)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        left = relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))), inplace=True)
        right = relu(self.bn3(self.conv3(x)), inplace=True)
        right = relu(self.bn5(self.conv5(self.bn4(self.conv4(right)))), inplace=True)
        return _shuffled(left, right)


class ShuffleNetV2(nn.Module):
    """ShuffleNetV2 of width 1: a 1x1 stem, three stages of 4, 8 and 4 blocks, each halving the sides, 1,024
    features.

    Source: arXiv:1807.11164, with the shape and the parameter names of RepDistiller and mdistiller, for 32 x 32
    pixels.
    """

    def __init__(self, channels: int, classes: int, normalisation: Normalisation | None) -> None:
        super().__init__()
        self.normalise = layers.normalise(normalisation, channels)
        self.conv1 = layers.conv1x1(channels, _STEM)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.layer1 = _halving_stage(_STEM, 116, blocks=4)
        self.layer2 = _halving_stage(116, 232, blocks=8)
        self.layer3 = _halving_stage(232, 464, blocks=4)
        self.conv2 = layers.conv1x1(464, 1024)
        self.bn2 = nn.BatchNorm2d(1024)
        self.linear = nn.Linear(1024, classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out = self.layer3(self.layer2(self.layer1(self._stem(x_BCHW))))
        logits_BK: Tensor = self.linear(self._pooled(out))
        return logits_BK

    def _stem(self, x_BCHW: Tensor) -> Tensor:
        layers.require_side(x_BCHW, 8, "ShuffleNetV2")
        return relu(self.bn1(self.conv1(self.normalise(x_BCHW))), inplace=True)

    def _pooled(self, x_BCHW: Tensor) -> Tensor:
        return relu(self.bn2(self.conv2(x_BCHW)), inplace=True).mean((2, 3))

    def tapped(self, x_BCHW: Tensor) -> Taps:
        stem = self._stem(x_BCHW)
        out, maps, preacts = through(stem, [self.layer1, self.layer2, self.layer3])
        pooled_BW = self._pooled(out)
        return Taps(self.linear(pooled_BW), (stem, *maps), preacts, pooled_BW)

    def last_norms(self) -> tuple[Norm, ...]:
        lasts: list[Any] = [self.layer1[-1], self.layer2[-1], self.layer3[-1]]
        return tuple(block.last_norm() for block in lasts)


def _halving_stage(channels_in: int, channels_out: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(
        _HalvingBlock(channels_in, channels_out), *(_HalvedBlock(channels_out) for _ in range(blocks - 1))
    )


def _shuffled(left: Tensor, right: Tensor) -> Tensor:
    return channel_shuffle(torch.cat([left, right], dim=1), 2)
