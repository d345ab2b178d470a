"""What a network expects to be done to pixels in [0, 1] first, as a part of the model.

Shapes: B batch, C channels, H, W pixels, K classes.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate


@dataclass(frozen=True)
class Geometry:
    """Scale the shorter side to `resize` pixels, then cut out the middle `crop` x `crop`."""

    resize: int
    crop: int
    interpolation: Literal["bilinear", "bicubic"]

    def __str__(self) -> str:
        return f"resize {self.resize} {self.interpolation}, crop {self.crop}"

    def apply(self, x_BCHW: Tensor) -> Tensor:
        """Images of `crop` x `crop` pixels; those that have this size already are taken for prepared ones."""
        height, width = x_BCHW.shape[-2:]
        if (height, width) == (self.crop, self.crop):
            return x_BCHW
        short = min(height, width)  # as torchvision does, and timm with it: sides are cut off, offsets rounded
        size = (max(self.crop, self.resize * height // short), max(self.crop, self.resize * width // short))
        x_BCHW = interpolate(x_BCHW, size, mode=self.interpolation, antialias=True).clamp(0, 1)
        top, left = round((size[0] - self.crop) / 2), round((size[1] - self.crop) / 2)
        return x_BCHW[..., top : top + self.crop, left : left + self.crop]


class Preprocessed(nn.Module):
    """model((geometry(x) - mean) / std): x_BCHW in [0, 1] -> logits_BK; `description` says it in words."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], geometry: Geometry | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.geometry = geometry
        steps = [str(geometry)] if geometry else []
        self.description = ", ".join([*steps, show_normalisation(mean, std)])
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits_BK: Tensor = self.model(self.prepared(x_BCHW))
        return logits_BK

    def prepared(self, x_BCHW: Tensor) -> Tensor:
        """What the model sees."""
        if self.geometry is not None:
            x_BCHW = self.geometry.apply(x_BCHW)
        return (x_BCHW - self.mean) / self.std


def show_normalisation(mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    """ "normalise mean (0.485, 0.456, 0.406) std (0.229, 0.224, 0.225)"."""
    means, stds = (", ".join(f"{value:.4g}" for value in values) for values in (mean, std))
    return f"normalise mean ({means}) std ({stds})"
