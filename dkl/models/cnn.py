"""The smallest network.

Shapes: B batch, C channels, H, W pixels.
"""

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, relu

from dkl.models import layers
from dkl.models.taps import Norm, Taps, norm_of


class CNN(nn.Module):
    """Two 3x3 convolutions, the second strided, and a linear head on a 4 x 4 grid; 8 x 8 images fill it."""

    def __init__(self, channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.conv1 = layers.conv3x3(channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = layers.conv3x3(width, 2 * width, stride=2)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.linear = nn.Linear(2 * width * 4 * 4, classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        layers.require_side(x_BCHW, 7, "CNN")
        out = relu(self.bn1(self.conv1(x_BCHW)))
        out = relu(self.bn2(self.conv2(out)))
        return self.linear(adaptive_avg_pool2d(out, 4).flatten(1))

    def tapped(self, x_BCHW: Tensor) -> Taps:
        layers.require_side(x_BCHW, 7, "CNN")
        stem = relu(self.bn1(self.conv1(x_BCHW)))
        preact = self.bn2(self.conv2(stem))
        out = relu(preact)
        pooled_BW = adaptive_avg_pool2d(out, 4).flatten(1)
        return Taps(self.linear(pooled_BW), (stem, out), (preact,), pooled_BW)

    def last_norms(self) -> tuple[Norm, ...]:
        return (norm_of(self.bn2),)
