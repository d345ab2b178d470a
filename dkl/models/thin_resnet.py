"""The thin ResNets of the CIFAR experiments: resnet20, resnet56, resnet8x4.

Activations and sums are in place where no gradient needs what was there: less memory to write and to keep.

Shapes: B batch, C channels, H, W pixels.
"""

from torch import Tensor, nn
from torch.nn.functional import relu

from dkl.documents import Normalisation
from dkl.models import layers
from dkl.models.taps import Norm, Taps, norm_of, through


class _Block(nn.Module):
    """relu(shortcut(x) + bn(conv(relu(bn(conv(x))))))"""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = layers.conv3x3(channels_in, channels_out, stride)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = layers.conv3x3(channels_out, channels_out)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.downsample = None
        if stride != 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(
                layers.conv1x1(channels_in, channels_out, stride), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.before_relu(x), inplace=True)

    def before_relu(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = relu(self.bn1(self.conv1(x)), inplace=True)
        total: Tensor = self.bn2(self.conv2(out)).add_(shortcut)
        return total


class ThinResNet(nn.Module):
    """Three stages of (depth - 2) / 6 blocks, a 3x3 stem, a mean over the pixels.

    Source: arXiv:1512.03385, section 4.2, with projecting shortcuts and the parameter names of RepDistiller and
    mdistiller, whose checkpoints distillation papers start from.
    """

    def __init__(
        self, channels: int, classes: int, depth: int, width: int, normalisation: Normalisation | None
    ) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        stem = 16 if width == 1 else 32
        self.normalise = layers.normalise(normalisation, channels)
        self.conv1 = layers.conv3x3(channels, stem)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = layers.stage(_Block, stem, 16 * width, 1, blocks)
        self.layer2 = layers.stage(_Block, 16 * width, 32 * width, 2, blocks)
        self.layer3 = layers.stage(_Block, 32 * width, 64 * width, 2, blocks)
        self.fc = nn.Linear(64 * width, classes)
        layers.start_convolutions(self)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out = self.layer3(self.layer2(self.layer1(self._stem(x_BCHW))))
        logits_BK: Tensor = self.fc(out.mean((2, 3)))
        return logits_BK

    def _stem(self, x_BCHW: Tensor) -> Tensor:
        layers.require_side(x_BCHW, 4, "ThinResNet")
        return relu(self.bn1(self.conv1(self.normalise(x_BCHW))), inplace=True)

    def tapped(self, x_BCHW: Tensor) -> Taps:
        stem = self._stem(x_BCHW)
        out, maps, preacts = through(stem, [self.layer1, self.layer2, self.layer3])
        pooled_BW = out.mean((2, 3))
        return Taps(self.fc(pooled_BW), (stem, *maps), preacts, pooled_BW)

    def last_norms(self) -> tuple[Norm, ...]:
        return tuple(norm_of(stage[-1].bn2) for stage in (self.layer1, self.layer2, self.layer3))
