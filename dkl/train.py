"""Training: natural, and adversarial with IKL (arXiv:2305.13948). One loop, as an iterator of events.

A run may be stopped at any event by closing the iterator; run again, it ends with the same weights, bit for bit,
as if it had never stopped (on a CPU; CUDA adds in no fixed order unless told to). For that `last.pt` in the work
directory holds all that changes, and every random number follows from (seed, epoch, batch).

Shapes: B batch, C channels, H, W pixels.
"""

import copy
import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, assert_never

import torch
from torch import Tensor, nn

from dkl import datasets, recipes, weights
from dkl.batches import Batches, Draw, as_pixels, generator, on_device
from dkl.documents import ThreatModel
from dkl.events import Epoch, Event, Finished, Progress, TrainResult
from dkl.losses import ClassPrior
from dkl.models import build, eval_mode
from dkl.recipes import IKL, Natural
from dkl.updates import Update, correct, ikl_update, natural_update


def train(recipe: recipes.Train, workdir: Path, *, device: str, data_dir: Path) -> Iterator[Event]:
    """Train, yielding `Progress` after every batch, `Epoch` after every epoch and `Finished` at the end.

    Goes on from what an earlier run of the same recipe left in `workdir`, whose epochs are said again first. The
    result is `workdir/model.safetensors`. Raises FloatingPointError where the loss is not finite, before the
    update; DatasetError; CheckpointError where `last.pt` is damaged; ValueError where it is another recipe's.
    """
    training, test = _images(recipe, data_dir), datasets.load(recipe.dataset, "test", data_dir)
    batches = Batches(
        training, batch_size=recipe.batch_size, augmentation=recipe.augmentation, seed=recipe.seed, device=device
    )
    run = _Run(recipe, channels=training.images.shape[3], classes=training.classes, device=device)
    last = workdir / "last.pt"
    if (state := weights.load_state(last)) is not None:
        run.load_state_dict(state)
    yield from run.history
    try:
        while run.epoch <= recipe.epochs:
            while run.batch < len(batches):
                run.step(*batches.batch(run.epoch, run.batch))
                yield run.progress(len(batches))
            run.end_epoch()
            weights.save_state(last, run.state_dict())
            yield run.history[-1]
    except GeneratorExit:
        weights.save_state(last, run.state_dict())
        raise
    yield Finished(result=_finish(run, workdir / "model.safetensors", test))


def learning_rate(lr: float, epoch: int, epochs: int) -> float:
    """Half a cosine: lr / 2 * (1 + cos(pi * epoch / (epochs + 1))), epoch = 1..epochs; it never reaches 0."""
    return lr * 0.5 * (1 + math.cos(math.pi * epoch / (epochs + 1)))


def _images(recipe: recipes.Train, data_dir: Path) -> datasets.Arrays:
    arrays = datasets.load(recipe.dataset, "train", data_dir)
    if recipe.images is None:
        return arrays
    if recipe.images > len(arrays.labels):
        raise ValueError(
            f"images is {recipe.images}, but {recipe.dataset} has {len(arrays.labels)} training images; "
            "leave it out to train on all"
        )
    return datasets.Arrays(arrays.images[: recipe.images], arrays.labels[: recipe.images], arrays.classes)


@dataclass
class _Sums:
    """Over the batches of the epoch so far."""

    images: int = 0
    loss: float = 0.0
    correct_nat: int = 0
    correct_adv: int = 0
    seconds: float = 0.0

    def add(self, update: Update, *, images: int, seconds: float) -> None:
        self.images += images
        self.loss += update.loss * images
        self.correct_nat += update.correct_nat
        self.correct_adv += update.correct_adv or 0
        self.seconds += seconds


class _Run:
    """All that changes while a recipe is trained. `epoch` (from 1) and `batch` (from 0) are what comes next."""

    def __init__(self, recipe: recipes.Train, *, channels: int, classes: int, device: str) -> None:
        self.recipe = recipe
        self.channels = channels
        self.classes = classes
        self.device = device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.model = build(recipe.model, channels=channels, classes=classes).to(device)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=recipe.optimizer.lr,
            momentum=recipe.optimizer.momentum,
            weight_decay=recipe.optimizer.weight_decay,
        )
        temperature = recipe.objective.prior_temperature if isinstance(recipe.objective, IKL) else 1.0
        self.prior = ClassPrior(classes, temperature=temperature, device=device)
        self.average: weights.State | None = None
        self.history: list[Epoch] = []
        self.batch = 0
        self.sums = _Sums()
        self.recent: deque[tuple[int, float]] = deque(maxlen=20)  # images and seconds of the latest batches

    @property
    def epoch(self) -> int:
        return len(self.history) + 1

    @property
    def lr(self) -> float:
        return learning_rate(self.recipe.optimizer.lr, self.epoch, self.recipe.epochs)

    @property
    def threat(self) -> ThreatModel | None:
        """The threat model of this epoch: the radius grows linearly, the last epoch has the full one."""
        full = self.recipe.threat
        return full and ThreatModel(norm=full.norm, eps=full.eps * self.epoch / self.recipe.epochs)

    def step(self, x_BCHW: Tensor, y_B: Tensor) -> None:
        began = time.monotonic()
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        try:
            update = self._update(x_BCHW, y_B)
        except FloatingPointError as error:
            raise FloatingPointError(
                f"{error} at epoch {self.epoch}, batch {self.batch + 1}; "
                f"try an optimizer.lr below {self.recipe.optimizer.lr:g} or smaller weights in the objective"
            ) from None
        seconds = time.monotonic() - began
        self.sums.add(update, images=len(y_B), seconds=seconds)
        self.recent.append((len(y_B), seconds))
        self.batch += 1

    def _update(self, x_BCHW: Tensor, y_B: Tensor) -> Update:
        recipe = self.recipe
        match recipe.objective:
            case Natural():
                return natural_update(self.model, self.optimizer, x_BCHW, y_B)
            case IKL():
                source = generator(self.device, Draw.ATTACK_START, recipe.seed, self.epoch, self.batch)
                assert recipe.attack is not None
                assert self.threat is not None
                return ikl_update(
                    self.model,
                    self.optimizer,
                    self.prior,
                    x_BCHW,
                    y_B,
                    objective=recipe.objective,
                    attack=recipe.attack,
                    threat=self.threat,
                    awp=recipe.awp if recipe.awp and self.epoch >= recipe.awp.first_epoch else None,
                    noise_BCHW=torch.randn(x_BCHW.shape, generator=source, device=self.device),
                )
            case _:
                assert_never(recipe.objective)

    def progress(self, batches: int) -> Progress:
        images, seconds = (sum(column) for column in zip(*self.recent, strict=True))
        done, total = (self.epoch - 1) * batches + self.batch, self.recipe.epochs * batches
        return Progress(
            phase=f"epoch {self.epoch} of {self.recipe.epochs}",
            done=done,
            total=total,
            rate=images / max(seconds, 1e-9),
            eta_seconds=(total - done) * seconds / len(self.recent),
        )

    def end_epoch(self) -> None:
        if self.recipe.ema_decay is not None:
            self.average = weights.average(self.average, self.model.state_dict(), self.recipe.ema_decay)
        self.prior.end_epoch()
        sums, threat = self.sums, self.threat
        self.history.append(
            Epoch(
                epoch=self.epoch,
                epochs=self.recipe.epochs,
                loss=sums.loss / sums.images,
                clean_accuracy=sums.correct_nat / sums.images,
                adversarial_accuracy=sums.correct_adv / sums.images if threat else None,
                eps=threat.eps if threat else None,
                lr=self.lr,
                seconds=sums.seconds,
            )
        )
        self.batch = 0
        self.sums = _Sums()

    def state_dict(self) -> dict[str, Any]:
        return {
            "fingerprint": recipes.fingerprint(self.recipe),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "prior": self.prior.state_dict(),
            "average": self.average,
            "batch": self.batch,
            "sums": asdict(self.sums),
            "history": [event.model_dump() for event in self.history],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        own = recipes.fingerprint(self.recipe)
        if state["fingerprint"] != own:
            raise ValueError(
                f"the work directory holds the training of another recipe ({state['fingerprint'][:12]}, "
                f"this is {own[:12]}); use an empty directory, or delete last.pt"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.prior.load_state_dict(state["prior"])
        average = state["average"]
        self.average = average and {name: value.to(self.device) for name, value in average.items()}
        self.history = [Epoch(**event) for event in state["history"]]
        self.batch = state["batch"]
        self.sums = _Sums(**state["sums"])


def _finish(run: _Run, path: Path, test: datasets.Arrays) -> TrainResult:
    """Write the averaged weights to `path` and judge them on the clean test images."""
    model = copy.deepcopy(run.model)
    if run.average is not None:
        weights.load_average(model, run.average)
    sha256 = weights.save_checkpoint(
        path,
        model,
        architecture=run.recipe.model,
        channels=run.channels,
        classes=run.classes,
        dataset=run.recipe.dataset,
    )
    return TrainResult(
        checkpoint_sha256=sha256,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        epochs=run.recipe.epochs,
        clean_accuracy=_clean_accuracy(model, test, run.device),
        seconds=sum(epoch.seconds for epoch in run.history),
    )


@torch.no_grad()
def _clean_accuracy(model: nn.Module, arrays: datasets.Arrays, device: str) -> float:
    images, y = on_device(arrays, device)
    with eval_mode(model):
        batches = zip(images.split(512), y.split(512), strict=True)
        return sum(correct(model(as_pixels(images_B)), y_B) for images_B, y_B in batches) / len(y)
