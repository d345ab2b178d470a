"""VGG with batch norm for small images.

Shapes: B batch, C channels, H, W pixels.
"""

from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from dkl.documents import Normalisation
from dkl.models import layers
from dkl.models.taps import Norm, Taps, norm_of

_CHANNELS = (64, 128, 256, 512, 512)
_POOLED = 3
"""So many stages are followed by pooling: from 32 x 32 pixels on, the last two see 4 x 4."""


class VGG(nn.Module):
    """Five stages of one (depth 8) or two (depth 13) 3x3 convolutions, a mean over the pixels, one linear layer.

    Source: arXiv:1409.1556, with the shape and the parameter names of RepDistiller and mdistiller, for 32 x 32
    pixels.
    """

    def __init__(self, channels: int, classes: int, depth: int, normalisation: Normalisation | None) -> None:
        super().__init__()
        convolutions = {8: 1, 13: 2}[depth]
        self.normalise = layers.normalise(normalisation, channels)
        self.block0 = _stage(channels, _CHANNELS[0], convolutions)
        self.block1 = _stage(_CHANNELS[0], _CHANNELS[1], convolutions)
        self.block2 = _stage(_CHANNELS[1], _CHANNELS[2], convolutions)
        self.block3 = _stage(_CHANNELS[2], _CHANNELS[3], convolutions)
        self.block4 = _stage(_CHANNELS[3], _CHANNELS[4], convolutions)
        self.classifier = nn.Linear(_CHANNELS[4], classes)
        layers.start_convolutions(self)
        layers.start_small(self.classifier)

    @property
    def _stages(self) -> tuple[nn.Sequential, ...]:
        return self.block0, self.block1, self.block2, self.block3, self.block4

    def forward(self, x_BCHW: Tensor) -> Tensor:
        layers.require_side(x_BCHW, 8, "VGG")
        out = self.normalise(x_BCHW)
        for place, stage in enumerate(self._stages):
            out = relu(stage(out), inplace=True)
            out = max_pool2d(out, 2) if place < _POOLED else out
        logits_BK: Tensor = self.classifier(out.mean((2, 3)))
        return logits_BK

    def tapped(self, x_BCHW: Tensor) -> Taps:
        layers.require_side(x_BCHW, 8, "VGG")
        out = self.normalise(x_BCHW)
        maps, preacts = [], []
        for place, stage in enumerate(self._stages):
            preacts.append(stage(out))
            maps.append(relu(preacts[-1]))
            out = max_pool2d(maps[-1], 2) if place < _POOLED else maps[-1]
        pooled_BW = out.mean((2, 3))
        return Taps(self.classifier(pooled_BW), tuple(maps), tuple(preacts[1:]), pooled_BW)

    def last_norms(self) -> tuple[Norm, ...]:
        return tuple(norm_of(stage[-1]) for stage in self._stages[1:])


def _stage(channels_in: int, channels_out: int, convolutions: int) -> nn.Sequential:
    """Convolutions with batch norm, and ReLU between them."""
    modules: list[nn.Module] = []
    for place in range(convolutions):
        if place > 0:
            modules.append(nn.ReLU(inplace=True))
        conv = nn.Conv2d(channels_in if place == 0 else channels_out, channels_out, 3, padding=1)
        modules += [conv, nn.BatchNorm2d(channels_out)]
    return nn.Sequential(*modules)
