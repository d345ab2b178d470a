"""Any classifier of the torchvision library.

Shapes: B batch, C channels, H, W pixels, K classes.
"""

import inspect
import types
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from dkl.documents import Normalisation
from dkl.models import layers


class TorchvisionNetwork(nn.Module):
    """torchvision's classifier `name` with weights drawn at random, after a normalisation if there is one.

    Raises ValueError, with a sentence for the user, where torchvision is missing or cannot build it like this.
    """

    def __init__(
        self,
        name: str,
        channels: int,
        classes: int,
        image_size: int | None = None,
        normalisation: Normalisation | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.normalise = layers.normalise(normalisation, channels)
        self.model: Any = _built(_models(), name, channels, classes, image_size)
        self.side: int | None = getattr(self.model, "image_size", None)
        """Of the images in pixels, where it has to be known: of vision transformers."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if self.side is not None:
            layers.require_square(x_BCHW, self.side, self.name)
        logits_BK: Tensor = self.model(self.normalise(x_BCHW))
        return logits_BK


def _models() -> types.ModuleType:
    try:
        return import_module("torchvision.models")
    except ImportError:
        raise ValueError("torchvision's networks need its package: pip install 'dkl-bench[worker]'") from None


def _built(models: Any, name: str, channels: int, classes: int, image_size: int | None) -> Any:
    known = models.list_models(module=models)
    if name not in known:
        close = get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else "see torchvision.models.list_models()"
        raise ValueError(f"torchvision has no classifier {name!r}; {hint}")
    if channels != 3:
        raise ValueError(
            f"torchvision's networks take images of 3 channels, found {channels}; take the architecture from "
            'timm, which builds them for any: {"kind": "timm"}'
        )
    if name.startswith("regnet"):  # it computes its shapes with tensors, which are empty on the meta device
        raise ValueError(
            f"torchvision's {name} cannot be looked at without building it in full; take it from timm, which has "
            'the RegNets as well: {"kind": "timm"}'
        )
    builder = models.get_model_builder(name)
    more = {} if image_size is None else {"image_size": image_size}
    if "aux_logits" in inspect.signature(_class_of(builder)).parameters:
        more |= {"aux_logits": False, "init_weights": True}  # else it returns more than logits in training
    try:
        return builder(weights=None, num_classes=classes, **more)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        if "'image_size'" in str(error):
            raise ValueError(f"{name} takes images of any size; leave out model.image_size") from error
        raise ValueError(f"torchvision cannot build {name}: {str(error).splitlines()[0]}") from error


def _class_of(builder: Any) -> Any:
    """The class that the builder's annotation says it returns."""
    return inspect.signature(builder).return_annotation
