"""Any architecture of the timm library.

Shapes: B batch, C channels, H, W pixels, K classes.
"""

import types
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from dkl.documents import Normalisation
from dkl.models import layers


class TimmNetwork(nn.Module):
    """timm's architecture `name` with weights drawn at random, after a normalisation if there is one.

    Raises ValueError, with a sentence for the user, where timm is missing or cannot build it like this.
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
        self.model = _built(_timm(), name, channels, classes, image_size)
        facts = self.model.default_cfg
        fixed = facts["input_size"][-1] if facts.get("fixed_input_size") else None
        self.side: int | None = image_size or fixed
        """Of the images in pixels, where it has to be known."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.model(self.prepared(x_BCHW))

    def prepared(self, x_BCHW: Tensor) -> Tensor:
        """What timm's network sees."""
        if self.side is not None:
            layers.require_square(x_BCHW, self.side, self.name)
        return self.normalise(x_BCHW)


def _timm() -> types.ModuleType:
    try:
        return import_module("timm")
    except ImportError:
        raise ValueError(
            "timm architectures need the package timm: pip install 'dkl-bench[worker]', or pip install timm"
        ) from None


def _built(timm: Any, name: str, channels: int, classes: int, image_size: int | None) -> Any:
    if not timm.is_model(name):
        close = get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else "see timm.list_models()"
        raise ValueError(f"timm has no architecture {name!r}; {hint}")
    size = {} if image_size is None else {"img_size": image_size}
    try:
        return timm.create_model(name, pretrained=False, num_classes=classes, in_chans=channels, **size)
    except (TypeError, AssertionError, RuntimeError, ValueError, ZeroDivisionError) as error:
        if "'img_size'" in str(error):
            raise ValueError(f"{name} takes images of any size; leave out model.image_size") from error
        images = f"of {image_size} x {image_size} pixels and {channels} channels" if image_size else ""
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"timm cannot build {name} for images {images or f'of {channels} channels'}: {first}; "
            + ("choose another model.image_size" if image_size else "choose another architecture")
        ) from error
