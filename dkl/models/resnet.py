"""ResNets for small images, with the activation after and before the convolutions.

Activations and sums are in place where no gradient needs what was there: less memory to write and to keep.

Shapes: B batch, C channels, H, W pixels.
"""

from torch import Tensor, nn
from torch.nn.functional import relu

from dkl.documents import Normalisation
from dkl.models import layers
from dkl.models.taps import Norm, Taps, norm_of, through, through_activated_first


class _PostActBlock(nn.Module):
    """relu(shortcut(x) + bn(conv(relu(bn(conv(x))))))"""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = layers.conv3x3(channels_in, channels_out, stride)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = layers.conv3x3(channels_out, channels_out)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                layers.conv1x1(channels_in, channels_out, stride), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.before_relu(x), inplace=True)

    def before_relu(self, x: Tensor) -> Tensor:
        out = relu(self.bn1(self.conv1(x)), inplace=True)
        return self.bn2(self.conv2(out)).add_(self.shortcut(x))

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return self.bn2


class _Bottleneck(nn.Module):
    """relu(shortcut(x) + bn(1x1 conv(relu(bn(conv(relu(bn(1x1 conv(x)))))))), a quarter as wide inside."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        inside = channels_out // 4
        self.conv1 = layers.conv1x1(channels_in, inside)
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv2 = layers.conv3x3(inside, inside, stride)
        self.bn2 = nn.BatchNorm2d(inside)
        self.conv3 = layers.conv1x1(inside, channels_out)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                layers.conv1x1(channels_in, channels_out, stride), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.before_relu(x), inplace=True)

    def before_relu(self, x: Tensor) -> Tensor:
        out = relu(self.bn1(self.conv1(x)), inplace=True)
        out = relu(self.bn2(self.conv2(out)), inplace=True)
        return self.bn3(self.conv3(out)).add_(self.shortcut(x))

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return self.bn3


class ResNet(nn.Module):
    """ResNet-18 or -50 for small images: a 3x3 stem without pooling, four stages, a mean over the pixels.

    Source: arXiv:1512.03385, in the form that CIFAR papers train.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        depth: int,
        width: int,
        strided_stages: int,
        normalisation: Normalisation | None,
    ) -> None:
        super().__init__()
        block, blocks, grown = {18: (_PostActBlock, (2, 2, 2, 2), 1), 50: (_Bottleneck, (3, 4, 6, 3), 4)}[depth]
        out = [grown * width * 2**stage for stage in range(4)]
        self.normalise = layers.normalise(normalisation, channels)
        self.conv1 = layers.conv3x3(channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = layers.stage(block, width, out[0], 1, blocks=blocks[0])
        self.layer2 = layers.stage(block, out[0], out[1], strided_stages - 1, blocks=blocks[1])
        self.layer3 = layers.stage(block, out[1], out[2], 2, blocks=blocks[2])
        self.layer4 = layers.stage(block, out[2], out[3], 2, blocks=blocks[3])
        self.linear = nn.Linear(out[3], classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out = self.layer4(self.layer3(self.layer2(self.layer1(self._stem(x_BCHW)))))
        return self.linear(out.mean((2, 3)))

    def _stem(self, x_BCHW: Tensor) -> Tensor:
        layers.require_side(x_BCHW, 8, "ResNet")
        return relu(self.bn1(self.conv1(self.normalise(x_BCHW))), inplace=True)

    @property
    def _stages(self) -> tuple[nn.Sequential, ...]:
        return self.layer1, self.layer2, self.layer3, self.layer4

    def tapped(self, x_BCHW: Tensor) -> Taps:
        stem = self._stem(x_BCHW)
        out, maps, preacts = through(stem, self._stages)
        pooled_BW = out.mean((2, 3))
        return Taps(self.linear(pooled_BW), (stem, *maps), preacts, pooled_BW)

    def last_norms(self) -> tuple[Norm, ...]:
        return tuple(norm_of(stage[-1].last_norm) for stage in self._stages)


class _PreActBlock(nn.Module):
    """shortcut + conv(relu(bn(conv(relu(bn(x)))))); a projecting shortcut starts after the first bn and relu."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = layers.conv3x3(channels_in, channels_out, stride)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.conv2 = layers.conv3x3(channels_out, channels_out)
        self.shortcut = None
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(layers.conv1x1(channels_in, channels_out, stride))

    def forward(self, x: Tensor) -> Tensor:
        return self.after_norm(x, self.bn1(x), inplace=True)

    def normed(self, x: Tensor) -> Tensor:
        return self.bn1(x)

    def after_norm(self, x: Tensor, normed: Tensor, *, inplace: bool = False) -> Tensor:
        out = relu(normed, inplace=inplace)
        shortcut = x if self.shortcut is None else self.shortcut(out)
        return self.conv2(relu(self.bn2(self.conv1(out)), inplace=True)).add_(shortcut)


class PreActResNet(nn.Module):
    """PreActResNet-18 for small images, with the batch norm and ReLU that end a pre-activation network.

    Some published code leaves the last batch norm and ReLU out (TRADES; Wong et al., arXiv:2001.03994), and starts
    projecting shortcuts before the first batch norm: other networks, with other weights.

    Source: arXiv:1603.05027, with the parameter names of Rice et al., arXiv:2002.11569.
    """

    def __init__(self, channels: int, classes: int, width: int, normalisation: Normalisation | None) -> None:
        super().__init__()
        self.normalise = layers.normalise(normalisation, channels)
        self.conv1 = layers.conv3x3(channels, width)
        self.layer1 = layers.stage(_PreActBlock, width, width, 1, blocks=2)
        self.layer2 = layers.stage(_PreActBlock, width, 2 * width, 2, blocks=2)
        self.layer3 = layers.stage(_PreActBlock, 2 * width, 4 * width, 2, blocks=2)
        self.layer4 = layers.stage(_PreActBlock, 4 * width, 8 * width, 2, blocks=2)
        self.bn = nn.BatchNorm2d(8 * width)
        self.linear = nn.Linear(8 * width, classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out = self.layer4(self.layer3(self.layer2(self.layer1(self._stem(x_BCHW)))))
        return self.linear(relu(self.bn(out)).mean((2, 3)))

    def _stem(self, x_BCHW: Tensor) -> Tensor:
        layers.require_side(x_BCHW, 8, "PreActResNet")
        return self.conv1(self.normalise(x_BCHW))

    def tapped(self, x_BCHW: Tensor) -> Taps:
        stem = self._stem(x_BCHW)
        out, maps, preacts = through_activated_first(stem, [self.layer1, self.layer2, self.layer3, self.layer4])
        last = self.bn(out)
        pooled_BW = relu(last).mean((2, 3))
        return Taps(self.linear(pooled_BW), (stem, *maps), (*preacts, last), pooled_BW)

    def last_norms(self) -> tuple[Norm, ...]:
        return tuple(
            norm_of(norm) for norm in (self.layer2[0].bn1, self.layer3[0].bn1, self.layer4[0].bn1, self.bn)
        )
