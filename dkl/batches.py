"""A recipe's training images, as the batches of each epoch on the device.

Which images a batch holds and how they are augmented depends on (seed, epoch, index) alone: any batch can be made
without the ones before it, so an interrupted epoch goes on where it stopped.

Shapes: V views, B images of a batch, C channels, H, W pixels.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dkl.augment import augment
from dkl.data_hash import of_arrays, of_folder, of_mixture
from dkl.datasets import Arrays, Folder, is_folder, load, open_folder, read_pictures
from dkl.draws import Draw, generator, order
from dkl.folders import FolderRows, on_crops
from dkl.generated import GeneratedRows, open_generated
from dkl.objectives import DAJAT
from dkl.recipes import Augmentation, Fit, Generated, Train


def on_device(arrays: Arrays, device: str | torch.device) -> tuple[Tensor, Tensor]:
    """Images as uint8 (N, C, H, W) and labels as int64 (N,)."""
    images = torch.from_numpy(arrays.images).permute(0, 3, 1, 2).contiguous()
    return images.to(device), torch.from_numpy(arrays.labels).to(device)


def as_pixels(images: Tensor) -> Tensor:
    """uint8 images as float32 in [0, 1]."""
    return images.float().div_(255)


# --- where the images of a batch come from ----------------------------------------------------------------


class Rows(Protocol):
    def __len__(self) -> int:
        """Batches in an epoch."""

    def rows(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """What a batch shows before augmentation: uint8 (V or 1, B, C, H, W), int64 (B,), on the device."""

    def positions(self, epoch: int, index: int) -> Tensor:
        """Which of the images that are learnt from these are: int64 (B,), on the CPU; -1 for a generated one."""


class ResidentRows:
    """Images that lie on the device, in a new order every epoch. The last batch holds what is left."""

    def __init__(self, arrays: Arrays, *, batch_size: int, seed: int, device: str | torch.device) -> None:
        self.images, self.labels = on_device(arrays, device)
        self.batch_size = batch_size
        self.seed = seed

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)

    def rows(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        chosen = self.positions(epoch, index).to(self.labels.device)
        return self.images[chosen][None], self.labels[chosen]

    def positions(self, epoch: int, index: int) -> Tensor:
        return order(len(self.labels), self.seed, epoch)[index * self.batch_size : (index + 1) * self.batch_size]


class MixedRows:
    """Real and generated images in every batch, shuffled together. All batches are whole.

    The real ones go through one permutation of them after the other, from a new one in every epoch.

    Source: arXiv:2302.04638, whose epoch has as many batches as all training images make, held-out ones included.
    """

    def __init__(
        self,
        arrays: Arrays,
        generated: Arrays,
        *,
        images: int,
        fraction: float,
        batch_size: int,
        seed: int,
        device: str | torch.device,
    ) -> None:
        drawn = int(batch_size * fraction)
        if drawn == 0:
            raise ValueError(
                f"generated.fraction {fraction:g} of batch_size {batch_size} is less than one image; "
                "raise either, or leave generated out"
            )
        self.images, self.labels = on_device(arrays, device)
        self.real, self.drawn = batch_size - drawn, drawn
        self.seed = seed
        self._batches = math.ceil(images / batch_size)
        self.generated = GeneratedRows(generated, count=drawn, batches=self._batches, seed=seed, device=device)

    def __len__(self) -> int:
        return self._batches

    def rows(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        generated_BCHW, y_generated_B = self.generated.rows(epoch, index)
        chosen = self._walk(epoch, index * self.real).to(self.labels.device)
        images = torch.cat([self.images[chosen], generated_BCHW])
        labels = torch.cat([self.labels[chosen], y_generated_B])
        shuffled = self._shuffled(epoch, index).to(labels.device)
        return images[shuffled][None], labels[shuffled]

    def positions(self, epoch: int, index: int) -> Tensor:
        generated = torch.full((self.drawn,), -1)
        return torch.cat([self._walk(epoch, index * self.real), generated])[self._shuffled(epoch, index)]

    def _shuffled(self, epoch: int, index: int) -> Tensor:
        source = generator("cpu", Draw.MIXTURE, self.seed, epoch, index)
        return torch.randperm(self.real + self.drawn, generator=source)

    def _walk(self, epoch: int, start: int) -> Tensor:
        """`self.real` steps from step `start` of an epoch's way through permutation 0, 1, ..."""
        count = len(self.labels)
        first, last = start // count, (start + self.real - 1) // count
        way = torch.cat([order(count, self.seed, epoch, turn) for turn in range(first, last + 1)])
        return way[start - first * count :][: self.real]


# --- batches ----------------------------------------------------------------------------------------------


class Batches:
    """`rows`, augmented once for each view."""

    def __init__(self, rows: Rows, *, augmentations: tuple[Augmentation | None, ...], seed: int) -> None:
        self.source = rows
        self.augmentations = augmentations
        self.seed = seed

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.source)

    @property
    def views(self) -> int:
        """How often a batch shows each of its images."""
        return len(self.augmentations)

    def batch(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """The batch number `index` (from 0) of `epoch` (from 1): x float32 in [0, 1] (V * B, C, H, W), y (V * B,).

        The first views of all images come before the second views, in the same order.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"an epoch has {len(self)} batches, there is no batch {index}")
        images_VBCHW, y_B = self.source.rows(epoch, index)
        count = len(self.augmentations)
        views = zip(images_VBCHW.expand(count, -1, -1, -1, -1), self.augmentations, strict=True)
        shown = [
            augment(images_BCHW, recipe, generator(images_BCHW.device, *_draw(view, self.seed, epoch, index)))
            if recipe
            else images_BCHW
            for view, (images_BCHW, recipe) in enumerate(views)
        ]
        return as_pixels(torch.cat(shown)), y_B.repeat(count)

    def positions(self, epoch: int, index: int) -> Tensor:
        """Which of the images that are learnt from a batch shows, of one view: int64 (B,), on the CPU; -1 for a
        generated one."""
        return self.source.positions(epoch, index)


def _draw(view: int, *key: int) -> tuple[int, ...]:
    """The key of a view's random numbers."""
    match view:
        case 0:
            return Draw.AUGMENTATION, *key
        case 1:
            return Draw.SECOND_VIEW, *key
        case _:
            return Draw.SECOND_VIEW, *key, view


@dataclass(frozen=True)
class TrainingData:
    """What a recipe trains on, and what it never trains on."""

    batches: Batches
    validation: Arrays | None
    """The first `validation.images` of the training images; None: the recipe holds none out."""
    channels: int
    classes: int
    smallest_batch: int
    """Images of the batch that holds what is left of an epoch, views not counted twice."""
    labels: NDArray[np.int64]
    """(N,): of the real images that are learnt from, by position."""
    class_counts: tuple[int, ...]
    """Real training images of each class."""
    sha256: str
    """Of all images that the batches come from, and their labels; see dkl/data_hash.py."""


def training_data(recipe: Fit, data_dir: Path, device: str | torch.device) -> TrainingData:
    """The images that `recipe` asks for, from `data_dir`.

    Raises DatasetError where they are missing or of the wrong form, ValueError where the recipe's numbers do not
    suit them.
    """
    if is_folder(recipe.dataset):
        return _from_folder(recipe, open_folder(recipe.dataset, "train", data_dir), device)
    arrays = load(recipe.dataset, "train", data_dir)
    count, held_out = _counts(recipe, len(arrays.labels))
    learnt_from = _part(arrays, held_out, count)
    rows, sha256 = _rows(recipe, learnt_from, count, data_dir, device)
    batches = Batches(rows, augmentations=_augmentations(recipe), seed=recipe.seed)
    validation = _part(arrays, 0, held_out) if held_out else None
    return TrainingData(
        batches,
        validation,
        channels=arrays.images.shape[3],
        classes=arrays.classes,
        smallest_batch=recipe.batch_size if _generated(recipe) else _rest(count - held_out, recipe.batch_size),
        labels=learnt_from.labels,
        class_counts=_class_counts(learnt_from.labels, arrays.classes),
        sha256=sha256,
    )


def _class_counts(labels: NDArray[np.int64], classes: int) -> tuple[int, ...]:
    return tuple(np.bincount(labels, minlength=classes).tolist())


def _rest(images: int, batch_size: int) -> int:
    return images % batch_size or min(images, batch_size)


def _rows(
    recipe: Fit, arrays: Arrays, images: int, data_dir: Path, device: str | torch.device
) -> tuple[Rows, str]:
    """What the batches show, and the sha256 of it all."""
    if (asked := _generated(recipe)) is None:
        rows = ResidentRows(arrays, batch_size=recipe.batch_size, seed=recipe.seed, device=device)
        return rows, of_arrays(arrays)
    generated = open_generated(data_dir, asked.file, real=arrays)
    mixed = MixedRows(
        arrays,
        generated,
        images=images,
        fraction=asked.fraction,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        device=device,
    )
    return mixed, of_mixture(arrays, generated)


def _from_folder(recipe: Fit, folder: Folder, device: str | torch.device) -> TrainingData:
    if _generated(recipe) is not None:
        raise ValueError(
            f"generated images go with a data set that fits on the device, not with the files of "
            f"{recipe.dataset}; leave generated out"
        )
    count, held_out = _counts(recipe, len(folder.labels))
    learnt_from = folder.part(held_out, count)
    rows = FolderRows(
        learnt_from,
        batch_size=recipe.batch_size,
        augmentations=_augmentations(recipe),
        seed=recipe.seed,
        device=device,
    )
    batches = Batches(rows, augmentations=tuple(map(on_crops, _augmentations(recipe))), seed=recipe.seed)
    validation = read_pictures(folder.part(0, held_out)) if held_out else None
    return TrainingData(
        batches,
        validation,
        channels=3,
        classes=len(folder.class_names),
        smallest_batch=_rest(count - held_out, recipe.batch_size),
        labels=learnt_from.labels,
        class_counts=_class_counts(learnt_from.labels, len(folder.class_names)),
        sha256=of_folder(learnt_from),
    )


def _augmentations(recipe: Fit) -> tuple[Augmentation | None, ...]:
    """One for each view of a batch."""
    base = recipe.augmentation
    if not isinstance(recipe, Train):
        return (base,)
    if isinstance(recipe.objective, DAJAT):
        plain = base or Augmentation(crop=0, flip=False)
        view = plain.model_copy(update={"policy": "autoaugment-first"})
        return (base, *(view,) * recipe.objective.views)
    return (base,) if recipe.second_view is None else (base, recipe.second_view.augmentation)


def _generated(recipe: Fit) -> Generated | None:
    return recipe.generated if isinstance(recipe, Train) else None


def _counts(recipe: Fit, available: int) -> tuple[int, int]:
    """How many images the recipe has, and how many of them, the first ones, are held out."""
    if recipe.images is not None and recipe.images > available:
        raise ValueError(
            f"images is {recipe.images}, but {recipe.dataset} has {available} training images; "
            "leave it out to train on all"
        )
    count = available if recipe.images is None else recipe.images
    held_out = 0 if recipe.validation is None else recipe.validation.images
    if held_out >= count:
        raise ValueError(
            f"validation.images is {held_out} of {count} training images, which leaves none to train on; hold out "
            "fewer"
        )
    return count, held_out


def _part(arrays: Arrays, first: int, end: int) -> Arrays:
    return Arrays(arrays.images[first:end], arrays.labels[first:end], arrays.classes)
