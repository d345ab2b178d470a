"""Training images that are files, decoded while the device is busy: ImageNet and its like.

How each image is cut out follows from (seed, epoch, position in the epoch's order, view), whoever decodes it and
whatever came before. Decoding is done by threads, because Pillow lets go of Python's lock meanwhile; processes, as
DataLoader starts them, are forbidden to Celery's children and need shared memory that containers lack.

An augmentation's `crop` and `padding` are those of small images and do not apply here. Any augmentation cuts a
random rectangle out, `flip` and all the rest are as they say; none cuts the centre out.
"""

import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dkl.ahead import Ahead
from dkl.datasets import Folder, centre, read_picture
from dkl.draws import Draw, order
from dkl.recipes import Augmentation


class FolderRows:
    """Training batches out of files, each read while the one before it is trained on."""

    def __init__(
        self,
        folder: Folder,
        *,
        batch_size: int,
        augmentations: tuple[Augmentation | None, ...],
        seed: int,
        device: str | torch.device,
    ) -> None:
        self.folder = folder
        self.batch_size = batch_size
        self.augmentations = augmentations
        self.seed = seed
        self.device = device
        self._threads = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="decode")
        self._ahead = Ahead(self._read, batches=len(self))

    def __len__(self) -> int:
        """Batches in an epoch."""
        return math.ceil(len(self.folder.labels) / self.batch_size)

    def rows(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """Pictures as uint8 (V, B, 3, SIDE, SIDE) and labels as int64 (B,), on the device."""
        pictures_VBHWC, y_B = self._ahead.get(epoch, index)
        return pictures_VBHWC.to(self.device).permute(0, 1, 4, 2, 3), y_B.to(self.device)

    def positions(self, epoch: int, index: int) -> Tensor:
        """Which of the folder's pictures a batch shows: int64 (B,), on the CPU."""
        start = index * self.batch_size
        return order(len(self.folder.labels), self.seed, epoch)[start : start + self.batch_size]

    def _read(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        start = index * self.batch_size
        chosen = self.positions(epoch, index).numpy()
        side = self.folder.side
        pictures = np.empty((len(self.augmentations), len(chosen), side, side, 3), np.uint8)

        def decode(row: int) -> None:
            picture = read_picture(self.folder.root / str(self.folder.files[chosen[row]]))
            for view, augmentation in enumerate(self.augmentations):
                random = np.random.default_rng((Draw.CROP, self.seed, epoch, start + row, view))
                pictures[view, row] = np.asarray(_cut_out(picture, side, augmentation, random))

        for _ in self._threads.map(decode, range(len(chosen))):
            pass
        return torch.from_numpy(pictures), torch.from_numpy(self.folder.labels[chosen])


def on_crops(augmentation: Augmentation | None) -> Augmentation | None:
    """What is left to do to pictures that have been cut out and mirrored: rotation and policy."""
    return augmentation and augmentation.model_copy(update={"crop": 0, "flip": False})


def _cut_out(
    picture: Image.Image, side: int, augmentation: Augmentation | None, random: np.random.Generator
) -> Image.Image:
    if augmentation is None:
        return centre(picture, side)
    box = _rectangle(*picture.size, random)
    shown = picture.crop(box).resize((side, side), Image.Resampling.BILINEAR)
    if augmentation.flip and random.random() < 0.5:
        return shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return shown


def _rectangle(width: int, height: int, random: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a part of a picture: 8 % to 100 % of its area, 3/4 to 4/3 as wide as high.

    The area is uniform, the logarithm of width / height is, and so is the place. After ten that do not fit, the
    largest one in the middle. Source: arXiv:1409.4842, section 6, with torchvision's bounds.
    """
    for _ in range(10):
        area = width * height * random.uniform(0.08, 1)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(random.integers(width - w + 1)), int(random.integers(height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, max(1, round(height * 4 / 3))), min(height, max(1, round(width * 4 / 3)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
