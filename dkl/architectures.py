"""The networks that may be asked for. No torch here; `dkl.models` builds them."""

from typing import Annotated, Literal, Self, assert_never

from pydantic import Field, StringConstraints, model_validator

from dkl.documents import Count, Document, Normalisation, PluginArguments, PluginName


class CNN(Document):
    """Two 3x3 convolutions with batch norm, one of them strided, and a linear head; for tiny images."""

    kind: Literal["cnn"] = "cnn"
    width: Count = 32


class ResNet(Document):
    """CIFAR-style post-activation ResNet (He et al., arXiv:1512.03385)."""

    kind: Literal["resnet"] = "resnet"
    depth: Literal[18, 50] = 18
    width: Count = 64
    """Channels of the first stage, of its bottlenecks for depth 50; published models use 64."""
    strided_stages: Literal[2, 3] = Field(default=3, exclude_if=lambda value: value == 3)
    """How many of the four stages, the last ones, begin with stride 2. 3: as usual. 2: maps of 32 x 32 pixels end
    as 8 x 8 and not as 4 x 4."""
    normalisation: Normalisation | None = Field(default=None, exclude_if=lambda value: value is None)
    """Applied inside: (x - mean) / std, x in [0, 1]; absent: pixels as they are."""


class PreActResNet(Document):
    """CIFAR-style pre-activation ResNet (He et al., arXiv:1603.05027)."""

    kind: Literal["preact-resnet"] = "preact-resnet"
    depth: Literal[18] = 18
    width: Count = 64
    """Channels of the first stage; published models use 64."""
    normalisation: Normalisation | None = None
    """Applied inside: (x - mean) / std, x in [0, 1]; absent: pixels as they are."""


Depth = Annotated[int, Field(ge=10, strict=True)]


def _require_6n_plus_4(depth: int) -> None:
    if (depth - 4) % 6:
        raise ValueError(
            f"depth must be 6n + 4 (10, 16, 22, 28, 34, 40, ...), found {depth}; take {depth - (depth - 4) % 6}"
        )


class WideResNet(Document):
    """WRN-depth-width with ReLU (Zagoruyko and Komodakis, arXiv:1605.07146), as TRADES trains it."""

    kind: Literal["wide-resnet"] = "wide-resnet"
    depth: Depth = 34
    width: Count = 10
    normalisation: Normalisation | None = None
    """Applied inside: (x - mean) / std, x in [0, 1]; absent: pixels as they are."""

    @model_validator(mode="after")
    def _depth_is_6n_plus_4(self) -> Self:
        _require_6n_plus_4(self.depth)
        return self


class SwishWideResNet(Document):
    """WRN-depth-width with SiLU and padding as in Haiku, normalising its input itself (arXiv:2010.03593).

    The network of DM-AT and of every entry with generated data. Its batch norms have momentum 0.01, and 1 in the
    very first update.
    """

    kind: Literal["swish-wide-resnet"] = "swish-wide-resnet"
    depth: Depth = 28
    width: Count = 10
    normalisation: Normalisation
    """Applied inside: (x - mean) / std, x in [0, 1]."""

    @model_validator(mode="after")
    def _depth_is_6n_plus_4(self) -> Self:
        _require_6n_plus_4(self.depth)
        return self


class ThinResNet(Document):
    """The ResNet of the CIFAR experiments, with three stages (He et al., arXiv:1512.03385, section 4.2).

    Distillation papers print "resnet20" for depth 20 and width 1, "resnet8x4" for depth 8 and width 4.
    """

    kind: Literal["thin-resnet"] = "thin-resnet"
    depth: Annotated[int, Field(ge=8, strict=True)] = 20
    width: Literal[1, 4] = 1
    """1: 16 channels in the stem and 16, 32, 64 in the stages; 4: 32 in the stem and 64, 128, 256."""
    normalisation: Normalisation | None = None
    """Applied inside: (x - mean) / std, x in [0, 1]; absent: pixels as they are."""

    @model_validator(mode="after")
    def _depth_is_6n_plus_2(self) -> Self:
        if (self.depth - 2) % 6:
            nearest = self.depth - (self.depth - 2) % 6
            raise ValueError(
                f"depth must be 6n + 2 (8, 14, 20, 32, 56, 110, ...), found {self.depth}; take {nearest}"
            )
        return self


class VGG(Document):
    """VGG with batch norm for 32 x 32 pixels (arXiv:1409.1556; arXiv:1910.10699)."""

    kind: Literal["vgg"] = "vgg"
    depth: Literal[8, 13] = 13
    normalisation: Normalisation | None = None
    """Applied inside: (x - mean) / std, x in [0, 1]; absent: pixels as they are."""


class MobileNetV2(Document):
    """MobileNetV2 of half the width for 32 x 32 pixels, expansion 6 (arXiv:1801.04381; arXiv:1910.10699)."""

    kind: Literal["mobilenet-v2"] = "mobilenet-v2"
    normalisation: Normalisation | None = None
    """Applied inside: (x - mean) / std, x in [0, 1]; absent: pixels as they are."""


class ShuffleNetV1(Document):
    """ShuffleNet with three groups for 32 x 32 pixels (arXiv:1707.01083; arXiv:1910.10699)."""

    kind: Literal["shufflenet-v1"] = "shufflenet-v1"
    normalisation: Normalisation | None = None
    """Applied inside: (x - mean) / std, x in [0, 1]; absent: pixels as they are."""


class ShuffleNetV2(Document):
    """ShuffleNetV2 of width 1 for 32 x 32 pixels (arXiv:1807.11164; arXiv:1910.10699)."""

    kind: Literal["shufflenet-v2"] = "shufflenet-v2"
    normalisation: Normalisation | None = None
    """Applied inside: (x - mean) / std, x in [0, 1]; absent: pixels as they are."""


class TimmModel(Document):
    """Any architecture of the timm library, from freshly drawn weights."""

    kind: Literal["timm"] = "timm"
    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,80}$")]
    """As `timm.list_models()` has it, without a tag: resnet50, vit_small_patch16_224."""
    image_size: Annotated[int, Field(ge=1, le=1024, strict=True)] | None = None
    """Side of the images in pixels, for architectures that must know it (vision transformers)."""
    normalisation: Normalisation | None = None
    """Applied inside: (x - mean) / std, x in [0, 1]; absent: pixels as they are."""


class TorchvisionModel(Document):
    """Any classifier of the torchvision library, from freshly drawn weights; for images of three channels."""

    kind: Literal["torchvision"] = "torchvision"
    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,80}$")]
    """As `torchvision.models.list_models()` has it: resnet50, convnext_tiny."""
    image_size: Annotated[int, Field(ge=1, le=1024, strict=True)] | None = None
    """Side of the images in pixels, for architectures that must know it (vision transformers)."""
    normalisation: Normalisation | None = None
    """Applied inside: (x - mean) / std, x in [0, 1]; absent: pixels as they are."""


class PluginModel(Document):
    """A network of a package that the operator has installed on the workers, see docs/plugins.md."""

    kind: Literal["plugin"] = "plugin"
    name: PluginName
    """As the package's entry point under dklbench.models has it."""
    arguments: PluginArguments = Field(default={})
    """What the plugin is told, by name; it says itself what it takes."""


Model = Annotated[
    CNN
    | ResNet
    | PreActResNet
    | WideResNet
    | SwishWideResNet
    | ThinResNet
    | VGG
    | MobileNetV2
    | ShuffleNetV1
    | ShuffleNetV2
    | TimmModel
    | TorchvisionModel
    | PluginModel,
    Field(discriminator="kind"),
]


def normalisation_of(model: Model) -> Normalisation | None:
    """What the network does to pixels first; None where it takes them as they are."""
    return None if isinstance(model, CNN | PluginModel) else model.normalisation


def show_model(model: Model) -> str:
    """The architecture's name as tables print it: "WRN-34-10", "PreActResNet-18", "resnet8x4"."""
    match model:
        case CNN():
            return f"CNN-{model.width}"
        case ResNet():
            width = "" if model.width == 64 else f"-w{model.width}"
            return f"ResNet-{model.depth}{width}" + ("" if model.strided_stages == 3 else "-s2")
        case PreActResNet():
            return f"PreActResNet-{model.depth}" + ("" if model.width == 64 else f"-w{model.width}")
        case WideResNet():
            return f"WRN-{model.depth}-{model.width}"
        case SwishWideResNet():
            return f"WRN-{model.depth}-{model.width}-SiLU"
        case ThinResNet():
            return f"resnet{model.depth}" + ("" if model.width == 1 else f"x{model.width}")
        case VGG():
            return f"vgg{model.depth}"
        case MobileNetV2():
            return "MobileNetV2"
        case ShuffleNetV1():
            return "ShuffleV1"
        case ShuffleNetV2():
            return "ShuffleV2"
        case TimmModel() | TorchvisionModel() | PluginModel():
            return model.name
        case _:
            assert_never(model)
