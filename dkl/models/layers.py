"""What several networks are made of.

Shapes: B batch, C channels, H, W pixels.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dkl.documents import Normalisation


def conv3x3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)


def conv1x1(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)


Block = Callable[[int, int, int], nn.Module]
"""(channels in, channels out, stride) -> module"""


def stage(block: Block, channels_in: int, channels_out: int, stride: int, blocks: int) -> nn.Sequential:
    """`blocks` blocks in a row, of which the first changes the number of channels and takes the stride."""
    rest = [block(channels_out, channels_out, 1) for _ in range(blocks - 1)]
    return nn.Sequential(block(channels_in, channels_out, stride), *rest)


def start_wide(network: nn.Module, head: nn.Linear) -> None:
    """Convolutions of `network` start from N(0, 2 / (kernel area * channels out)), the biases of `head` from 0."""
    start_convolutions(network)
    nn.init.zeros_(head.bias)


def start_convolutions(network: nn.Module) -> None:
    """Convolutions of `network` start from N(0, 2 / (kernel area * channels out)), their biases from 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def start_small(head: nn.Linear) -> None:
    """Weights of `head` start from N(0, 0.01^2), its biases from 0."""
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)


@torch.fx.wrap  # tracing must not look into it, and does not where it is called as layers.require_side
def require_side(x_BCHW: Tensor, least: int, who: str) -> None:
    """ValueError where a side of the images has fewer than `least` pixels; `who` needs them."""
    height, width = x_BCHW.shape[-2:]
    if min(height, width) < least:
        raise ValueError(f"{who} needs images of at least {least} x {least} pixels, found {height} x {width}")


@torch.fx.wrap  # as above
def require_square(x_BCHW: Tensor, side: int, name: str) -> None:
    """ValueError where the images are not the squares of `side` pixels that the network `name` is built for."""
    height, width = x_BCHW.shape[-2:]
    if (height, width) != (side, side):
        raise ValueError(
            f"{name} is built for images of {side} x {side} pixels, found {height} x {width}; "
            f"set model.image_size={height}"
        )


def normalise(normalisation: Normalisation | None, channels: int) -> nn.Module:
    """The layer that does it; one that does nothing where there is nothing to do."""
    return nn.Identity() if normalisation is None else Normalise(normalisation, channels)


class Normalise(nn.Module):
    """(x - mean) / std per channel. The document knows the constants; state dicts do not hold them."""

    mean: Tensor
    std: Tensor

    def __init__(self, normalisation: Normalisation, channels: int) -> None:
        super().__init__()
        if len(normalisation.mean) != channels:
            raise ValueError(
                f"the model's normalisation has {len(normalisation.mean)} means, the images have {channels} "
                "channels; give one mean and one std for each"
            )
        self.register_buffer("mean", torch.tensor(normalisation.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(normalisation.std).view(-1, 1, 1), persistent=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return (x_BCHW - self.mean) / self.std
