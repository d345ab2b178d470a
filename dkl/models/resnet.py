"""ResNet-18 for small images, with the activation after and before the convolutions.

Activations and sums are in place where no gradient needs what was there: less memory to write and to keep.

Shapes: B batch, C channels, H, W pixels.
"""

from torch import Tensor, nn
from torch.nn.functional import relu

from dkl.documents import Normalisation
from dkl.models import layers


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
        out = relu(self.bn1(self.conv1(x)), inplace=True)
        return relu(self.bn2(self.conv2(out)).add_(self.shortcut(x)), inplace=True)


class ResNet(nn.Module):
    """ResNet-18 for small images: a 3x3 stem without pooling, four stages of two blocks, a mean over the pixels.

    Source: arXiv:1512.03385, in the form that CIFAR papers train.
    """

    def __init__(self, channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.conv1 = layers.conv3x3(channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = layers.stage(_PostActBlock, width, width, 1, blocks=2)
        self.layer2 = layers.stage(_PostActBlock, width, 2 * width, 2, blocks=2)
        self.layer3 = layers.stage(_PostActBlock, 2 * width, 4 * width, 2, blocks=2)
        self.layer4 = layers.stage(_PostActBlock, 4 * width, 8 * width, 2, blocks=2)
        self.linear = nn.Linear(8 * width, classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        layers.require_side(x_BCHW, 8, "ResNet")
        out = relu(self.bn1(self.conv1(x_BCHW)), inplace=True)
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return self.linear(out.mean((2, 3)))


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
        out = relu(self.bn1(x), inplace=True)
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
        layers.require_side(x_BCHW, 8, "PreActResNet")
        out = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(self.normalise(x_BCHW))))))
        return self.linear(relu(self.bn(out)).mean((2, 3)))
