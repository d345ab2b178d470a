"""AutoAugment's policy for CIFAR-10 and its operations on batches: pixel for pixel what Pillow makes of an image.

The policy was searched with Pillow, so Pillow's rounding is the definition: blends are cut off after the point,
shears use the cubic with a = -1, rotations 16.16 fixed point. torchvision's tensor versions round otherwise,
except for `equalize`.

Shapes: images are uint8 (B, C, H, W) with 1 or 3 channels. `level` (B,) is float64: what the operation needs to
know about its strength, image by image, with its sign.

Source: Cubuk et al., arXiv:1805.09501, appendix, with the magnitudes of the public re-implementation that
adversarial training uses (arXiv:2210.15318, arXiv:2305.13948): grey (128) moves in, a rotation is always
counter-clockwise.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GREY = 128
FIXED_POINT = 1 << 16


# --- moving pixels ----------------------------------------------------------------------------------------


def sampled(images: Tensor, rows_BHW: Tensor, columns_BHW: Tensor, fill: int) -> Tensor:
    """Images whose pixel (h, w) is the old one at (rows, columns)[h, w], `fill` where that lies outside.

    Rows and columns are whole numbers and may have a length of 1 instead of H or W. One gather for all channels.
    """
    height, width = images.shape[2:]
    inside_BHW = (rows_BHW >= 0) & (rows_BHW < height) & (columns_BHW >= 0) & (columns_BHW < width)
    source_BHW = rows_BHW.clamp(0, height - 1) * width + columns_BHW.clamp(0, width - 1)
    source_BCN = source_BHW.flatten(1)[:, None].expand(-1, images.shape[1], -1)
    moved = images.flatten(2).gather(2, source_BCN).view_as(images)
    return moved.masked_fill_(~inside_BHW[:, None], fill)


def rotated(images: Tensor, degrees: Tensor, fill: int) -> Tensor:
    """Images turned counter-clockwise about their centre by `degrees` (B,): nearest pixel, as Image.rotate."""
    height, width = images.shape[2:]
    angle_B11 = degrees.double().deg2rad()[:, None, None]
    cos_B11, sin_B11 = angle_B11.cos(), angle_B11.sin()
    # Where the centre of the first pixel comes from, and the steps from there: Pillow adds up rounded numbers.
    x, y = 0.5 - width / 2, 0.5 - height / 2
    column_B11 = _fixed(width / 2 + x * cos_B11 - y * sin_B11)
    row_B11 = _fixed(height / 2 + x * sin_B11 + y * cos_B11)
    down_H1 = torch.arange(height, device=images.device)[:, None]
    along_W = torch.arange(width, device=images.device)
    columns_BHW = column_B11 + down_H1 * _fixed(-sin_B11) + along_W * _fixed(cos_B11)
    rows_BHW = row_B11 + down_H1 * _fixed(cos_B11) + along_W * _fixed(sin_B11)
    return sampled(images, rows_BHW >> 16, columns_BHW >> 16, fill)


def _fixed(number: Tensor) -> Tensor:
    return (number * FIXED_POINT + 0.5).floor().long()


def _rotate(images: Tensor, level: Tensor) -> Tensor:
    """By `level` degrees."""
    return rotated(images, level, GREY)


def _translate_x(images: Tensor, level: Tensor) -> Tensor:
    """To the left by `level` widths."""
    return _translated(images, torch.zeros_like(level), level)


def _translate_y(images: Tensor, level: Tensor) -> Tensor:
    """Upwards by `level` heights."""
    return _translated(images, level, torch.zeros_like(level))


def _translated(images: Tensor, up: Tensor, left: Tensor) -> Tensor:
    height, width = images.shape[2:]
    rows_BH = (up * height + 0.5).floor().long()[:, None] + torch.arange(height, device=images.device)
    columns_BW = (left * width + 0.5).floor().long()[:, None] + torch.arange(width, device=images.device)
    return sampled(images, rows_BH[:, :, None], columns_BW[:, None], GREY)


def _shear_y(images: Tensor, level: Tensor) -> Tensor:
    """Each column upwards by `level` times its distance from the left edge, cubic between four pixels.

    With d the distance of the point from pixel 1 of its pixels 0..3:
        v1 + d * (v2 - v0 + d * (2 * (v0 - v1) + v2 - v3 + d * (v1 - v0 + v3 - v2)))
    """
    height, width = images.shape[2:]
    down_H1 = torch.arange(height, device=images.device, dtype=torch.float64)[:, None] + 0.5
    along_W = torch.arange(width, device=images.device, dtype=torch.float64) + 0.5
    row_BHW = level[:, None, None] * along_W + down_H1
    outside_BHW = (row_BHW < 0) | (row_BHW >= height)
    row_BHW = row_BHW - 0.5
    pixel_BHW = row_BHW.floor()
    d = (row_BHW - pixel_BHW)[:, None]

    def value(offset: int) -> Tensor:
        rows_BCHW = (pixel_BHW + offset).long().clamp(0, height - 1)[:, None].expand(-1, images.shape[1], -1, -1)
        return images.gather(2, rows_BCHW).double()

    # In float64 and in Pillow's order: where the result is a whole number, the last bit decides.
    v0, v1, v2, v3 = (value(offset) for offset in (-1, 0, 1, 2))
    cubic = v1 + d * (v2 - v0 + d * (2 * (v0 - v1) + v2 - v3 + d * (v1 - v0 - v2 + v3)))
    return cubic.clamp_(0, 255).to(torch.uint8).masked_fill_(outside_BHW[:, None], GREY)


# --- changing values --------------------------------------------------------------------------------------


def _brightness(images: Tensor, level: Tensor) -> Tensor:
    return _blended(torch.zeros_like(images), images, level)


def _contrast(images: Tensor, level: Tensor) -> Tensor:
    mean_B111 = _luminance(images).double().mean((1, 2, 3), keepdim=True)
    return _blended((mean_B111 + 0.5).floor(), images, level)


def _color(images: Tensor, level: Tensor) -> Tensor:
    return _blended(_luminance(images), images, level)


def _sharpness(images: Tensor, level: Tensor) -> Tensor:
    inner = images[:, :, 1:-1, 1:-1].float()
    rows = images.float()
    rows = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inner
    blended = images.clone()  # the border stays as it is
    blended[:, :, 1:-1, 1:-1] = _blended((total / 13 + 0.5).floor(), inner, level)
    return blended


def _blended(dull: Tensor, images: Tensor, level: Tensor) -> Tensor:
    """dull + (1 + level) * (images - dull), cut off after the point; float32 and this order, as Image.blend."""
    dull, images = dull.float(), images.float()
    factor_B111 = (1 + level).float()[:, None, None, None]
    return (dull + factor_B111 * (images - dull)).clamp_(0, 255).to(torch.uint8)


def _luminance(images: Tensor) -> Tensor:
    """Grey values, int32 (B, 1, H, W): ITU-R 601 in 16 binary places, rounded."""
    if images.shape[1] == 1:
        return images.int()
    red, green, blue = images.int().unbind(1)
    return (19595 * red + 38470 * green + 7471 * blue + (1 << 15))[:, None] >> 16


def _autocontrast(images: Tensor, _: Tensor) -> Tensor:
    pixels = images.double()
    low, high = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
    # A number divided by a tensor is a product with its reciprocal, which rounds twice.
    scale = torch.tensor(255, dtype=torch.float64) / (high - low).clamp_min(1)
    stretched = (pixels * scale + -low * scale).clamp_(0, 255).to(torch.uint8)
    return torch.where(high > low, stretched, images)


def _equalize(images: Tensor, _: Tensor) -> Tensor:
    from torchvision.transforms.v2.functional import equalize_image  # a second to import, and only needed here

    equalized: Tensor = equalize_image(images)
    return equalized


def _invert(images: Tensor, _: Tensor) -> Tensor:
    return images.bitwise_not()


def _solarize(images: Tensor, level: Tensor) -> Tensor:
    """Inverted from grey level `level` on."""
    return torch.where(images < level[:, None, None, None], images, 255 - images)


def _posterize(images: Tensor, level: Tensor) -> Tensor:
    """The upper `level` bits."""
    return images & (256 - 2 ** (8 - level)).to(torch.uint8)[:, None, None, None]


# --- the policy -------------------------------------------------------------------------------------------


class Operation(NamedTuple):
    """What is done, at which level for the magnitudes 0 to 9, and whether with either sign, each with p = 1/2."""

    apply: Callable[[Tensor, Tensor], Tensor]
    levels: NDArray[np.float64]
    signed: bool = False


_ENHANCE = np.linspace(0, 0.9, 10)
_TRANSLATE = np.linspace(0, 150 / 331, 10)
_NONE = np.zeros(10)
OPERATIONS = {
    "shearY": Operation(_shear_y, np.linspace(0, 0.3, 10), signed=True),
    "translateX": Operation(_translate_x, _TRANSLATE, signed=True),
    "translateY": Operation(_translate_y, _TRANSLATE, signed=True),
    "rotate": Operation(_rotate, np.linspace(0, 30, 10)),
    "color": Operation(_color, _ENHANCE, signed=True),
    "contrast": Operation(_contrast, _ENHANCE, signed=True),
    "sharpness": Operation(_sharpness, _ENHANCE, signed=True),
    "brightness": Operation(_brightness, _ENHANCE, signed=True),
    "posterize": Operation(_posterize, np.linspace(8, 4, 10).round()),
    "solarize": Operation(_solarize, np.linspace(256, 0, 10)),
    "autocontrast": Operation(_autocontrast, _NONE),
    "equalize": Operation(_equalize, _NONE),
    "invert": Operation(_invert, _NONE),
}


class Step(NamedTuple):
    """One operation of a sub-policy."""

    operation: str
    probability: float
    magnitude: int


POLICY = (
    (Step("invert", 0.1, 7), Step("contrast", 0.2, 6)),
    (Step("rotate", 0.7, 2), Step("translateX", 0.3, 9)),
    (Step("sharpness", 0.8, 1), Step("sharpness", 0.9, 3)),
    (Step("shearY", 0.5, 8), Step("translateY", 0.7, 9)),
    (Step("autocontrast", 0.5, 8), Step("equalize", 0.9, 2)),
    (Step("shearY", 0.2, 7), Step("posterize", 0.3, 7)),
    (Step("color", 0.4, 3), Step("brightness", 0.6, 7)),
    (Step("sharpness", 0.3, 9), Step("brightness", 0.7, 9)),
    (Step("equalize", 0.6, 5), Step("equalize", 0.5, 1)),
    (Step("contrast", 0.6, 7), Step("sharpness", 0.6, 5)),
    (Step("color", 0.7, 7), Step("translateX", 0.5, 8)),
    (Step("equalize", 0.3, 7), Step("autocontrast", 0.4, 8)),
    (Step("translateY", 0.4, 3), Step("sharpness", 0.2, 6)),
    (Step("brightness", 0.9, 6), Step("color", 0.2, 8)),
    (Step("solarize", 0.5, 2), Step("invert", 0.0, 3)),
    (Step("equalize", 0.2, 0), Step("autocontrast", 0.6, 0)),
    (Step("equalize", 0.2, 8), Step("equalize", 0.6, 4)),
    (Step("color", 0.9, 9), Step("equalize", 0.6, 6)),
    (Step("autocontrast", 0.8, 4), Step("solarize", 0.2, 8)),
    (Step("brightness", 0.1, 3), Step("color", 0.7, 0)),
    (Step("solarize", 0.4, 5), Step("autocontrast", 0.9, 3)),
    (Step("translateY", 0.9, 9), Step("translateY", 0.7, 9)),
    (Step("autocontrast", 0.9, 2), Step("solarize", 0.8, 3)),
    (Step("equalize", 0.8, 8), Step("invert", 0.1, 3)),
    (Step("translateY", 0.7, 9), Step("autocontrast", 0.9, 1)),
)
_NAMES = tuple(OPERATIONS)
_OPERATION = torch.tensor([[_NAMES.index(step.operation) for step in pair] for pair in POLICY])
_PROBABILITY = torch.tensor([[step.probability for step in pair] for pair in POLICY])
_LEVEL = torch.tensor(
    [[OPERATIONS[step.operation].levels[step.magnitude] for step in pair] for pair in POLICY], dtype=torch.float64
)
_SIGNED = torch.tensor([[OPERATIONS[step.operation].signed for step in pair] for pair in POLICY])


def draws(count: int, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """For each image: its sub-policy (B,), which of the two steps it takes (B, 2), and their signs (B, 2)."""
    device = random.device
    chosen_B = torch.randint(0, len(POLICY), (count,), generator=random, device=device)
    chance_B2 = torch.rand((count, 2), generator=random, device=device)
    negative_B2 = torch.randint(0, 2, (count, 2), generator=random, device=device, dtype=torch.bool)
    return chosen_B, chance_B2 < _PROBABILITY.to(device)[chosen_B], 1 - 2 * negative_B2.long()


def autoaugment(images: Tensor, random: torch.Generator) -> Tensor:
    """Each image after the two steps of a sub-policy of its own; every sub-policy is equally likely.

    Images that drew the same operation go through it together, whatever their magnitudes.
    """
    device = images.device
    chosen_B, taken_B2, sign_B2 = draws(len(images), random)
    operation_B2 = _OPERATION.to(device)[chosen_B].where(taken_B2, len(OPERATIONS))
    level_B2 = _LEVEL.to(device)[chosen_B] * sign_B2.where(_SIGNED.to(device)[chosen_B], 1)
    order_B2 = operation_B2.argsort(dim=0, stable=True)
    kinds = torch.arange(len(OPERATIONS) + 1, device=device)
    # The only wait for the device: how many images share each operation.
    sizes_2K = (operation_B2[:, :, None] == kinds).sum(0).tolist()
    images = images.clone()
    for step, sizes in enumerate(sizes_2K):
        *groups, _untouched = torch.split(order_B2[:, step], sizes)
        for operation, group_G in zip(OPERATIONS.values(), groups, strict=True):
            if len(group_G):
                images[group_G] = operation.apply(images[group_G], level_B2[group_G, step])
    return images
