"""A data set on the device, as the batches of each epoch.

Which images a batch holds and how they are augmented depends on (seed, epoch, index) alone: any batch can be made
without the ones before it, so an interrupted epoch goes on where it stopped.
"""

from enum import IntEnum
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dkl.datasets import Arrays


class Draw(IntEnum):
    """What random numbers are for: the first number of a key, so that no two uses share a stream."""

    ORDER = 1
    AUGMENTATION = 2
    ATTACK_START = 3


def generator(device: str | torch.device, *key: int) -> torch.Generator:
    """A generator on `device` whose numbers follow from `key` alone."""
    seed = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(seed))


def on_device(arrays: Arrays, device: str | torch.device) -> tuple[Tensor, Tensor]:
    """Images as uint8 (N, C, H, W) and labels as int64 (N,)."""
    images = torch.from_numpy(arrays.images).permute(0, 3, 1, 2).contiguous()
    return images.to(device), torch.from_numpy(arrays.labels).to(device)


def as_pixels(images: Tensor) -> Tensor:
    """uint8 images as float32 in [0, 1]."""
    return images.float().div_(255)


class Batches:
    """The training images in a new order every epoch. The last batch holds what is left and may be smaller."""

    def __init__(
        self,
        arrays: Arrays,
        *,
        batch_size: int,
        augmentation: Literal["none", "crop-flip"],
        seed: int,
        device: str | torch.device,
    ) -> None:
        self.images, self.labels = on_device(arrays, device)
        self.batch_size = batch_size
        self.augmentation = augmentation
        self.seed = seed
        self._order = (0, torch.empty(0))

    def __len__(self) -> int:
        """Batches in an epoch."""
        return (len(self.labels) + self.batch_size - 1) // self.batch_size

    def batch(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """The batch number `index` (from 0) of `epoch` (from 1): x float32 in [0, 1], y."""
        if not 0 <= index < len(self):
            raise IndexError(f"an epoch has {len(self)} batches, there is no batch {index}")
        chosen = self._order_of(epoch)[index * self.batch_size : (index + 1) * self.batch_size]
        images = self.images[chosen]
        if self.augmentation == "crop-flip":
            images = crop_flip(images, generator(images.device, Draw.AUGMENTATION, self.seed, epoch, index))
        return as_pixels(images), self.labels[chosen]

    def _order_of(self, epoch: int) -> Tensor:
        if self._order[0] != epoch:
            # Drawn on the CPU, so that an epoch's order is the same on every device.
            order = torch.randperm(len(self.labels), generator=generator("cpu", Draw.ORDER, self.seed, epoch))
            self._order = (epoch, order.to(self.labels.device))
        return self._order[1]


def crop_flip(images: Tensor, random: torch.Generator) -> Tensor:
    """Each image (B, C, H, W) shifted by up to 4 pixels either way, zeros moving in, and mirrored with p = 1/2."""
    count, channels, height, width = images.shape
    device = images.device
    top = torch.randint(0, 9, (count, 1), generator=random, device=device)
    left = torch.randint(0, 9, (count, 1), generator=random, device=device)
    mirrored = torch.randint(0, 2, (count, 1), generator=random, device=device, dtype=torch.bool)
    rows = top + torch.arange(height, device=device)
    columns = torch.arange(width, device=device).expand(count, width)
    columns = left + torch.where(mirrored, width - 1 - columns, columns)
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4))
    image = torch.arange(count, device=device)[:, None, None, None]
    channel = torch.arange(channels, device=device)[:, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
