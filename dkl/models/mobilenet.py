"""MobileNetV2 of half the width for small images.

Shapes: B batch, C channels, H, W pixels.
"""

from typing import Any

from torch import Tensor, nn

from dkl.documents import Normalisation
from dkl.models import layers
from dkl.models.taps import Norm, Taps, norm_of

_EXPANSION = 6
_STEM, _HEAD = 16, 1280
_GROUPS = ((8, 1, 1), (12, 2, 1), (16, 3, 2), (32, 4, 2), (48, 3, 1), (80, 3, 2), (160, 1, 1))
"""(channels, blocks, stride of the first): half of the channels that the paper has."""
_STAGE_ENDS = (1, 2, 4, 6)
"""Groups after which features are taken: the last ones of each size, and the first that is not the stem's."""


class _Block(nn.Module):
    """1x1 convolution into more channels, 3x3 within each, 1x1 back, batch norms between; the end is linear."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        inside = channels_in * expansion
        self.adds = stride == 1 and channels_in == channels_out
        self.conv = nn.Sequential(
            layers.conv1x1(channels_in, inside),
            nn.BatchNorm2d(inside),
            nn.ReLU(inplace=True),
            nn.Conv2d(inside, inside, 3, stride, padding=1, groups=inside, bias=False),
            nn.BatchNorm2d(inside),
            nn.ReLU(inplace=True),
            layers.conv1x1(inside, channels_out),
            nn.BatchNorm2d(channels_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out.add_(x) if self.adds else out


class MobileNetV2(nn.Module):
    """Inverted residuals with expansion 6, a strided stem, and 1,280 features.

    Blocks end without an activation, and so their maps are their pre-activations.

    Source: arXiv:1801.04381, with the shape and the parameter names of RepDistiller and mdistiller, for 32 x 32
    pixels.
    """

    def __init__(self, channels: int, classes: int, normalisation: Normalisation | None) -> None:
        super().__init__()
        self.normalise = layers.normalise(normalisation, channels)
        self.conv1 = _activated(layers.conv3x3(channels, _STEM, stride=2))
        self.blocks = nn.ModuleList()
        channels_in = _STEM
        for place, (out, blocks, stride) in enumerate(_GROUPS):
            self.blocks.append(_group(channels_in, out, blocks, stride, _EXPANSION if place else 1))
            channels_in = out
        self.conv2 = _activated(layers.conv1x1(channels_in, _HEAD))
        last = nn.Linear(_HEAD, classes)
        self.classifier = nn.Sequential(last)
        layers.start_convolutions(self)
        layers.start_small(last)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.tapped(x_BCHW).logits_BK

    def tapped(self, x_BCHW: Tensor) -> Taps:
        layers.require_side(x_BCHW, 8, "MobileNetV2")
        stem = out = self.conv1(self.normalise(x_BCHW))
        maps = []
        for place, group in enumerate(self.blocks):
            out = group(out)
            if place in _STAGE_ENDS:
                maps.append(out)
        pooled_BW = self.conv2(out).mean((2, 3))
        return Taps(self.classifier(pooled_BW), (stem, *maps), tuple(maps), pooled_BW)

    def last_norms(self) -> tuple[Norm, ...]:
        groups: list[Any] = [self.blocks[place] for place in _STAGE_ENDS]
        return tuple(norm_of(group[-1].conv[-1]) for group in groups)


def _group(channels_in: int, channels_out: int, blocks: int, stride: int, expansion: int) -> nn.Sequential:
    rest = [_Block(channels_out, channels_out, 1, expansion) for _ in range(blocks - 1)]
    return nn.Sequential(_Block(channels_in, channels_out, stride, expansion), *rest)


def _activated(conv: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True))
