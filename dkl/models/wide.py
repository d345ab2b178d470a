"""The wide ResNet of TRADES and its successors.

Activations and sums are in place where no gradient needs what was there: less memory to write and to keep.

Shapes: B batch, C channels, H, W pixels.
"""

from torch import Tensor, nn
from torch.nn.functional import relu

from dkl.documents import Normalisation
from dkl.models import layers
from dkl.models.taps import Norm, Taps, norm_of, through_activated_first


class _Block(nn.Module):
    """shortcut + conv(relu(bn(conv(relu(bn(x)))))); a projecting shortcut starts after the first bn and relu."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = layers.conv3x3(channels_in, channels_out, stride)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.conv2 = layers.conv3x3(channels_out, channels_out)
        self.convShortcut = (
            None if channels_in == channels_out else layers.conv1x1(channels_in, channels_out, stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.after_norm(x, self.bn1(x), inplace=True)

    def normed(self, x: Tensor) -> Tensor:
        return self.bn1(x)

    def after_norm(self, x: Tensor, normed: Tensor, *, inplace: bool = False) -> Tensor:
        out = relu(normed, inplace=inplace)
        shortcut = x if self.convShortcut is None else self.convShortcut(out)
        return self.conv2(relu(self.bn2(self.conv1(out)), inplace=True)).add_(shortcut)


class _Stage(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, stride: int, blocks: int) -> None:
        super().__init__()
        self.layer = layers.stage(_Block, channels_in, channels_out, stride, blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """WRN-depth-width: three stages of (depth - 4) / 6 pre-activation blocks, no dropout.

    Source: arXiv:1605.07146, with the parameter names of TRADES and RobustBench.
    """

    def __init__(
        self, channels: int, classes: int, depth: int, width: int, normalisation: Normalisation | None
    ) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.normalise = layers.normalise(normalisation, channels)
        self.conv1 = layers.conv3x3(channels, 16)
        self.block1 = _Stage(16, 16 * width, 1, blocks)
        self.block2 = _Stage(16 * width, 32 * width, 2, blocks)
        self.block3 = _Stage(32 * width, 64 * width, 2, blocks)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, classes)
        layers.start_wide(self, self.fc)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out = self.block3(self.block2(self.block1(self._stem(x_BCHW))))
        return self.fc(relu(self.bn1(out), inplace=True).mean((2, 3)))

    def _stem(self, x_BCHW: Tensor) -> Tensor:
        layers.require_side(x_BCHW, 4, "WideResNet")
        return self.conv1(self.normalise(x_BCHW))

    def tapped(self, x_BCHW: Tensor) -> Taps:
        stem = self._stem(x_BCHW)
        stages = [stage.layer for stage in (self.block1, self.block2, self.block3)]
        out, maps, preacts = through_activated_first(stem, stages)
        last = self.bn1(out)
        pooled_BW = relu(last).mean((2, 3))
        return Taps(self.fc(pooled_BW), (stem, *maps), (*preacts, last), pooled_BW)

    def last_norms(self) -> tuple[Norm, ...]:
        return tuple(norm_of(norm) for norm in (self.block2.layer[0].bn1, self.block3.layer[0].bn1, self.bn1))
