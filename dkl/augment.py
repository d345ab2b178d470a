"""What training does to a batch of images, on the device that holds them.

Every image has draws of its own, and the number of draws depends on the number of images alone: a batch follows
from the generator's seed.
"""

from typing import Literal, assert_never

import torch
from torch import Tensor

from dkl.autoaugment import autoaugment, rotated, sampled
from dkl.recipes import Augmentation


def augment(images: Tensor, recipe: Augmentation, random: torch.Generator) -> Tensor:
    """Images, uint8 (B, C, H, W), cropped and mirrored, then turned, then put through the policy of `recipe`.

    The policy autoaugment-first comes before all that. The generator lives on the images' device. The images given
    stay as they are.
    """
    if recipe.policy == "autoaugment-first":
        images = autoaugment(images, random)
    if recipe.crop or recipe.flip:
        images = crop_flip(images, recipe.crop, recipe.padding, recipe.flip, random)
    if recipe.rotation:
        images = rotate(images, recipe.rotation, random)
    match recipe.policy:
        case "autoaugment":
            return autoaugment(images, random)
        case "cutout":
            return cutout(images, random)
        case "autoaugment-first" | None:
            return images
        case _:
            assert_never(recipe.policy)


def crop_flip(
    images: Tensor, crop: int, padding: Literal["zeros", "reflect"], flip: bool, random: torch.Generator
) -> Tensor:
    """Each image shifted by up to `crop` pixels either way and, where `flip`, mirrored with probability 1/2.

    Zeros move in, or the image's reflection without its edge. ValueError: the reflection is too short.
    """
    count, _, height, width = images.shape
    if padding == "reflect" and crop >= min(height, width):
        raise ValueError(
            f"crop is {crop} and an image {height} x {width}: a reflection reaches at most side - 1 pixels; "
            "lower crop or set padding to zeros"
        )
    device = images.device
    top_B1 = torch.randint(0, 2 * crop + 1, (count, 1), generator=random, device=device)
    left_B1 = torch.randint(0, 2 * crop + 1, (count, 1), generator=random, device=device)
    rows_BH = top_B1 - crop + torch.arange(height, device=device)
    columns_BW = torch.arange(width, device=device).expand(count, width)
    if flip:
        mirrored_B1 = torch.randint(0, 2, (count, 1), generator=random, device=device, dtype=torch.bool)
        columns_BW = torch.where(mirrored_B1, width - 1 - columns_BW, columns_BW)
    columns_BW = left_B1 - crop + columns_BW
    if padding == "reflect":
        rows_BH, columns_BW = _reflected(rows_BH, height), _reflected(columns_BW, width)
    return sampled(images, rows_BH[:, :, None], columns_BW[:, None], fill=0)


def _reflected(index: Tensor, side: int) -> Tensor:
    last = side - 1
    return last - (last - index.abs()).abs()


def rotate(images: Tensor, degrees: float, random: torch.Generator) -> Tensor:
    """Each image turned by an angle uniform in +-`degrees`: nearest pixel, black moves in.

    Source: torchvision's RandomRotation on Pillow images, with its defaults.
    """
    unit_B = torch.rand(len(images), generator=random, device=images.device)
    return rotated(images, degrees * (2 * unit_B - 1), fill=0)


def cutout(images: Tensor, random: torch.Generator) -> Tensor:
    """Each image with a black square of half its shorter side, cut off at the edges.

    Its centre is uniform over the pixels; of the 2k rows of a square, k lie above the centre's.

    Source: DeVries and Taylor, arXiv:1708.04552.
    """
    count, _, height, width = images.shape
    side = min(height, width) // 2
    hole_BHW = (
        _near_centre(count, height, side, random)[:, :, None] & _near_centre(count, width, side, random)[:, None]
    )
    return images.masked_fill(hole_BHW[:, None], 0)


def _near_centre(count: int, length: int, side: int, random: torch.Generator) -> Tensor:
    start_B1 = torch.randint(0, length, (count, 1), generator=random, device=random.device) - side // 2
    index = torch.arange(length, device=random.device)
    return (index >= start_B1) & (index < start_B1 + side)
