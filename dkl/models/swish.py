"""The wide ResNet of Gowal et al. and of DM-AT: SiLU, Haiku's padding, and its own normalisation.

Shapes: B batch, C channels, H, W pixels.
"""

from torch import Tensor, nn
from torch.nn.functional import pad, silu

from dkl.documents import Normalisation
from dkl.models import layers
from dkl.models.taps import Norm, Taps, norm_of, through_activated_first

_MOMENTUM = 0.01
"""Of the batch norms: one hundredth of a batch's statistics joins the running ones."""


class _Block(nn.Module):
    """shortcut + conv(silu(bn(conv(silu(bn(x)))))); a projecting shortcut starts after the first bn and silu."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.strided = stride == 2
        self.batchnorm_0 = nn.BatchNorm2d(channels_in, momentum=_MOMENTUM)
        self.conv_0 = layers.conv3x3(channels_in, channels_out)
        if self.strided:
            self.conv_0 = nn.Conv2d(channels_in, channels_out, 3, 2, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(channels_out, momentum=_MOMENTUM)
        self.conv_1 = layers.conv3x3(channels_out, channels_out)
        self.shortcut = None if channels_in == channels_out else layers.conv1x1(channels_in, channels_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.after_norm(x, self.batchnorm_0(x))

    def normed(self, x: Tensor) -> Tensor:
        return self.batchnorm_0(x)

    def after_norm(self, x: Tensor, normed: Tensor) -> Tensor:
        out = silu(normed)
        shortcut = x if self.shortcut is None else self.shortcut(out)
        out = self.conv_0(_padded(out) if self.strided else out)
        return shortcut + self.conv_1(silu(self.batchnorm_1(out)))


def _padded(x_BCHW: Tensor) -> Tensor:
    """`x_BCHW` with zeros around it for a 3x3 convolution of stride 2, as Haiku's "SAME" places them.

    An even side gets one row at its end, and none before it; an odd side one at each end.
    """
    height, width = x_BCHW.shape[-2:]
    return pad(x_BCHW, (width % 2, 1, height % 2, 1))


class _Stage(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, stride: int, blocks: int) -> None:
        super().__init__()
        self.block = layers.stage(_Block, channels_in, channels_out, stride, blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class SwishWideResNet(nn.Module):
    """WRN-depth-width with SiLU: three stages of (depth - 4) / 6 pre-activation blocks, no dropout.

    Source: arXiv:2010.03593, with the parameter names, start and momentum of arXiv:2302.04638.
    """

    def __init__(self, channels: int, classes: int, depth: int, width: int, normalisation: Normalisation) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.normalise = layers.Normalise(normalisation, channels)
        self.init_conv = layers.conv3x3(channels, 16)
        self.layer = nn.Sequential(
            _Stage(16, 16 * width, 1, blocks),
            _Stage(16 * width, 32 * width, 2, blocks),
            _Stage(32 * width, 64 * width, 2, blocks),
        )
        self.batchnorm = nn.BatchNorm2d(64 * width, momentum=_MOMENTUM)
        self.logits = nn.Linear(64 * width, classes)
        layers.start_wide(self, self.logits)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out = self.layer(self._stem(x_BCHW))
        return self.logits(silu(self.batchnorm(out)).mean((2, 3)))

    def _stem(self, x_BCHW: Tensor) -> Tensor:
        layers.require_side(x_BCHW, 4, "SwishWideResNet")
        return self.init_conv(self.normalise(x_BCHW))

    def tapped(self, x_BCHW: Tensor) -> Taps:
        stem = self._stem(x_BCHW)
        out, maps, preacts = through_activated_first(stem, [stage.block for stage in self.layer])
        last = self.batchnorm(out)
        pooled_BW = silu(last).mean((2, 3))
        return Taps(self.logits(pooled_BW), (stem, *maps), (*preacts, last), pooled_BW)

    def last_norms(self) -> tuple[Norm, ...]:
        firsts = [stage.block[0].batchnorm_0 for stage in self.layer[1:]]
        return tuple(norm_of(norm) for norm in (*firsts, self.batchnorm))
