"""The architectures of `dkl.architectures` as modules: x_BCHW in [0, 1] -> logits_BK.

Parameter names are those of the published checkpoints, so that these load. No model normalises its input, but for
those whose document says with what.
"""

from typing import assert_never

from torch import nn

from dkl import architectures
from dkl.models.cnn import CNN
from dkl.models.mobilenet import MobileNetV2
from dkl.models.modes import batch_mode, eval_mode, first_update
from dkl.models.plugin_network import plugin_network
from dkl.models.resnet import PreActResNet, ResNet
from dkl.models.shufflenet import ShuffleNetV1, ShuffleNetV2
from dkl.models.swish import SwishWideResNet
from dkl.models.tapping import last_norms, tapped
from dkl.models.taps import Norm, Tapped, Taps
from dkl.models.thin_resnet import ThinResNet
from dkl.models.timm_network import TimmNetwork
from dkl.models.torchvision_network import TorchvisionNetwork
from dkl.models.vgg import VGG
from dkl.models.wide import WideResNet

__all__ = ["Norm", "Tapped", "Taps", "batch_mode", "build", "eval_mode", "first_update", "last_norms", "tapped"]


def build(model: architectures.Model, *, channels: int, classes: int) -> nn.Module:
    """A freshly initialised network for images of `channels` channels, in training mode, on the default device.

    The weights come from torch's global generator. Its forward raises ValueError for images of a size that it does
    not take. Raises ValueError where a normalisation is for other images, and for what timm, torchvision or
    a plugin cannot build.
    """
    match model:
        case architectures.CNN():
            return CNN(channels, classes, model.width)
        case architectures.ResNet():
            strided = model.strided_stages
            return ResNet(channels, classes, model.depth, model.width, strided, model.normalisation)
        case architectures.PreActResNet():
            return PreActResNet(channels, classes, model.width, model.normalisation)
        case architectures.WideResNet():
            return WideResNet(channels, classes, model.depth, model.width, model.normalisation)
        case architectures.SwishWideResNet():
            return SwishWideResNet(channels, classes, model.depth, model.width, model.normalisation)
        case architectures.ThinResNet():
            return ThinResNet(channels, classes, model.depth, model.width, model.normalisation)
        case architectures.VGG():
            return VGG(channels, classes, model.depth, model.normalisation)
        case architectures.MobileNetV2():
            return MobileNetV2(channels, classes, model.normalisation)
        case architectures.ShuffleNetV1():
            return ShuffleNetV1(channels, classes, model.normalisation)
        case architectures.ShuffleNetV2():
            return ShuffleNetV2(channels, classes, model.normalisation)
        case architectures.TimmModel():
            return TimmNetwork(model.name, channels, classes, model.image_size, model.normalisation)
        case architectures.TorchvisionModel():
            return TorchvisionNetwork(model.name, channels, classes, model.image_size, model.normalisation)
        case architectures.PluginModel():
            return plugin_network(model, channels=channels, classes=classes)
        case _:
            assert_never(model)
