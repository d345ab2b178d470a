"""How a model fares during training on images that it never learns from.

They are held-out training images. The originals choose their best epoch on the test set; a number that was chosen
on the images it is about can only be too good.

Shapes: B batch, C channels, H, W pixels, K classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dkl import attacks, losses
from dkl.batches import as_pixels, on_device
from dkl.datasets import Arrays
from dkl.draws import Draw, generator
from dkl.models import eval_mode
from dkl.objectives import PGD
from dkl.recipes import Fit, Validation
from dkl.world import ALONE, World

_BATCH = 256


@dataclass(frozen=True)
class Accuracies:
    """Fractions of the validation images."""

    clean: float
    robust: float | None
    """Under PGD; None where nothing is defended against."""


class Judge:
    """Judges states of a model on the same images, by the same attack from the same start, every time."""

    def __init__(self, recipe: Fit, arrays: Arrays, device: str, world: World = ALONE) -> None:
        assert recipe.validation is not None
        self.images, self.labels = on_device(arrays, device)
        self.threat = recipe.threat
        self.attack = _pgd(recipe.validation)
        self.seed = recipe.seed
        self.world = world

    def accuracies(self, model: nn.Module, state: Mapping[str, Tensor]) -> Accuracies:
        """Of `model` with the weights `state`, in eval mode; `model` is left as it is."""

        def forward(x_BCHW: Tensor) -> Tensor:
            return torch.func.functional_call(model, dict(state), (x_BCHW,))

        correct = torch.zeros(2, dtype=torch.float64, device=self.labels.device)
        with attacks.attack_mode(model, "eval"):
            # Batches go round the processes, so that an image's attack starts alike however many there are.
            for first in range(self.world.rank * _BATCH, len(self.labels), self.world.size * _BATCH):
                rows = slice(first, first + _BATCH)
                x_BCHW, y_B = as_pixels(self.images[rows]), self.labels[rows]
                correct[0] += _correct(forward, x_BCHW, y_B)
                if self.threat is not None:
                    correct[1] += _correct(forward, self._attacked(forward, x_BCHW, y_B, first), y_B)
        self.world.sum_(correct)
        clean, robust = (correct / len(self.labels)).tolist()
        return Accuracies(clean, None if self.threat is None else robust)

    def _attacked(self, forward: attacks.Forward, x_BCHW: Tensor, y_B: Tensor, first: int) -> Tensor:
        assert self.threat is not None
        random = generator(x_BCHW.device, Draw.VALIDATION_START, self.seed, first)
        return attacks.perturb(
            self.attack,
            forward,
            x_BCHW,
            self.threat,
            loss=lambda logits_BK: losses.margin(logits_BK, y_B) * len(y_B),
            start_BCHW=attacks.draw_start(self.attack, x_BCHW, self.threat, random),
        )


def _pgd(validation: Validation) -> PGD:
    """PGD whose steps together go 2.5 times as far as the radius; the loss is said where it is used."""
    return PGD(
        loss="ce",
        steps=validation.steps,
        relative_step_size=2.5 / validation.steps,
        start="uniform",
        eps_schedule="constant",
    )


@torch.no_grad()
def _correct(forward: attacks.Forward, x_BCHW: Tensor, y_B: Tensor) -> Tensor:
    return (forward(x_BCHW).argmax(1) == y_B).sum()


class Clean(NamedTuple):
    """Fractions of images that are classified correctly."""

    accuracy: float
    by_class: tuple[float | None, ...]
    """Of each class; None for a class without images."""


def clean_accuracy(model: nn.Module, arrays: Arrays, device: str) -> float:
    """The fraction of images that `model`, in eval mode, classifies correctly."""
    return int(_hits(model, arrays, device).sum()) / len(arrays.labels)


def clean_accuracies(model: nn.Module, arrays: Arrays, device: str) -> Clean:
    """The same, and for the images of each class, in one pass."""
    hits, labels = _hits(model, arrays, device), torch.from_numpy(arrays.labels)
    correct = torch.bincount(labels[hits], minlength=arrays.classes).tolist()
    counts = torch.bincount(labels, minlength=arrays.classes).tolist()
    by_class = tuple(c / count if count else None for c, count in zip(correct, counts, strict=True))
    return Clean(int(hits.sum()) / len(labels), by_class)


@torch.no_grad()
def _hits(model: nn.Module, arrays: Arrays, device: str) -> Tensor:
    """(N,), on the CPU: which images are classified correctly."""
    images, labels = on_device(arrays, "cpu")
    with eval_mode(model):
        batches = zip(images.split(512), labels.split(512), strict=True)
        return torch.cat([(model(as_pixels(x.to(device))).argmax(1).cpu() == y) for x, y in batches])
