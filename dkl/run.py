"""A training run, by whatever method: all that changes while a recipe is trained, and the steps that change it."""

import time
from collections import deque
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from dkl import recipes
from dkl.averages import make_average
from dkl.batches import TrainingData
from dkl.events import Adjusted, Epoch, Progress, StrategyEpoch
from dkl.execution import make_network
from dkl.method import Method, Shown
from dkl.models import build, first_update
from dkl.schedules import learning_rate, momentum
from dkl.tensors import State
from dkl.updates import Update
from dkl.validation import Accuracies, Judge
from dkl.world import World

Fitting = recipes.Train | recipes.Distill


@dataclass
class _Sums:
    """Over the batches of the epoch so far."""

    images: int = 0
    loss: float = 0.0
    terms: dict[str, float] = field(default_factory=dict)
    correct_nat: int | None = 0
    correct_adv: int | None = 0
    correct_teacher: int | None = 0
    seconds: float = 0.0

    def add(self, seen: Update, *, images: int, seconds: float) -> None:
        self.images += images
        self.loss += seen.loss * images
        for name, term in seen.terms.items():
            self.terms[name] = self.terms.get(name, 0.0) + term * images
        self.correct_nat = _add(self.correct_nat, seen.correct_nat)
        self.correct_adv = _add(self.correct_adv, seen.correct_adv)
        self.correct_teacher = _add(self.correct_teacher, seen.correct_teacher)
        self.seconds += seconds


def _add(total: int | None, count: int | None) -> int | None:
    return None if total is None or count is None else total + count


class Run:
    """All that changes while a recipe is trained. `epoch` (from 1) and `batch` (from 0) are what comes next."""

    def __init__(self, recipe: Fitting, method: Method, data: TrainingData, device: str, world: World) -> None:
        self.recipe = recipe
        self.method = method
        self.data = data
        self.device = device
        self.world = world
        world.share(data.smallest_batch)  # refuses now what would fail at the end of the first epoch
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.model = build(recipe.model, channels=data.channels, classes=data.classes).to(device)
            beside = list(method.meet(self.model))
        self.network = make_network(self.model, recipe, device, world)
        self.optimizer = _sgd(self.model, beside, recipe.optimizer)
        self.average = make_average(recipe.averaging)
        self.judge = Judge(recipe, data.validation, device, world) if data.validation else None
        self.micro_batch: int | None = None
        self.facts: list[Epoch | Adjusted] = []
        self.batch = 0
        self.sums = _Sums()
        self.recent: deque[tuple[int, float]] = deque(maxlen=20)  # images and seconds of the latest batches

    @property
    def epochs(self) -> list[Epoch]:
        return [fact for fact in self.facts if isinstance(fact, Epoch)]

    @property
    def epoch(self) -> int:
        return len(self.epochs) + 1

    @property
    def done(self) -> int:
        """Updates, of all epochs."""
        return (self.epoch - 1) * len(self.data.batches) + self.batch

    @property
    def total(self) -> int:
        return self.recipe.epochs * len(self.data.batches)

    @property
    def lr(self) -> float:
        return learning_rate(self.recipe.optimizer, self.epoch, self.recipe.epochs)

    def step(self) -> Adjusted | None:
        """One update; or none, where it did not fit into memory and the next one is to be smaller."""
        began = time.monotonic()
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
            group["momentum"] = momentum(self.recipe.optimizer, self.epoch, self.recipe.epochs)
        shown = self._show()
        images = len(shown.y_B) // self.data.batches.views
        try:
            with first_update(self.model) if self.done == 0 else nullcontext():
                seen = self._update(shown)
        except (torch.OutOfMemoryError, MemoryError) as error:
            return self._halve(images, str(error))
        if self.average is not None:
            self.average.after_update(self.model, self.done, self.total)
        seconds = time.monotonic() - began
        self.sums.add(seen, images=images, seconds=seconds)
        self.recent.append((images, seconds))
        self.batch += 1
        return None

    def _show(self) -> Shown:
        x_BCHW, y_B = self.data.batches.batch(self.epoch, self.batch)
        return Shown(self.epoch, self.batch, x_BCHW.contiguous(memory_format=torch.channels_last), y_B)

    def _update(self, shown: Shown) -> Update:
        try:
            return self.method.update(self.network, self.optimizer, shown, micro_batch=self.micro_batch)
        except FloatingPointError as error:
            raise FloatingPointError(
                f"{error} at epoch {self.epoch}, batch {self.batch + 1}; "
                f"try an optimizer.lr below {self.recipe.optimizer.lr:g} or smaller weights in the objective"
            ) from None
        except RuntimeError as error:  # a CPU says it so
            if "can't allocate memory" not in str(error):
                raise
            raise MemoryError(str(error)) from None

    def _halve(self, images: int, said: str) -> Adjusted:
        before = min(self.micro_batch or images, images)
        needed = said.partition("\n")[0].strip()
        if self.world.size > 1:
            raise MemoryError(
                f"a batch of {images} images does not fit into memory ({needed}); ask for a smaller one"
            )
        if before == 1:
            raise MemoryError(f"not even one image at a time fits into memory ({needed}); take a smaller model")
        self.micro_batch = before // 2
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
        adjusted = Adjusted(
            sentence=f"{before} images at once did not fit into memory ({needed}); from epoch {self.epoch}, batch "
            f"{self.batch + 1} on {self.micro_batch} pass at a time and gradients are summed up; batch norms see "
            "the smaller parts",
            micro_batch=self.micro_batch,
        )
        self.facts.append(adjusted)
        return adjusted

    def progress(self) -> Progress:
        images, seconds = (sum(column) for column in zip(*self.recent, strict=True))
        return Progress(
            phase=f"epoch {self.epoch} of {self.recipe.epochs}",
            done=self.done,
            total=self.total,
            rate=images / max(seconds, 1e-9),
            eta_seconds=(self.total - self.done) * seconds / len(self.recent),
        )

    def end_epoch(self) -> Epoch:
        """Average and validate; what the epoch was like."""
        began = time.monotonic()
        if self.average is not None:
            self.average.after_epoch(self.model)
        strategy = self.method.end_epoch()
        judged = self.judge.accuracies(self.model, self.result_state()) if self.judge else None
        epoch = self._epoch_event(judged, strategy, seconds=self.sums.seconds + time.monotonic() - began)
        self.facts.append(epoch)
        self.batch = 0
        self.sums = _Sums()
        return epoch

    def _epoch_event(self, judged: Accuracies | None, strategy: StrategyEpoch | None, *, seconds: float) -> Epoch:
        sums, epochs = self.sums, self.recipe.epochs
        passed = sum(epoch.seconds for epoch in self.epochs) + seconds
        return Epoch(
            epoch=self.epoch,
            epochs=epochs,
            loss=sums.loss / sums.images,
            terms={name: term / sums.images for name, term in sums.terms.items()},
            clean_accuracy=None if sums.correct_nat is None else sums.correct_nat / sums.images,
            adversarial_accuracy=None if sums.correct_adv is None else sums.correct_adv / sums.images,
            teacher_accuracy=None if sums.correct_teacher is None else sums.correct_teacher / sums.images,
            validation_accuracy=judged and judged.clean,
            validation_robust_accuracy=judged and judged.robust,
            eps=self.method.eps(self.epoch),
            strategy=strategy,
            lr=self.lr,
            images_per_second=sums.images / max(sums.seconds, 1e-9),
            seconds=seconds,
            eta_seconds=(epochs - self.epoch) * passed / self.epoch,
        )

    def result_state(self) -> State:
        """The weights that would be the result if the run ended here."""
        return self.average.state(self.model) if self.average else self.model.state_dict()

    def state_dict(self) -> dict[str, Any]:
        return {
            "fingerprint": recipes.fingerprint(self.recipe),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "prior": self.method.state_dict(),
            "average": self.average and self.average.state_dict(),
            "micro_batch": self.micro_batch,
            "batch": self.batch,
            "sums": asdict(self.sums),
            "facts": [event.model_dump() for event in self.facts],
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
        self.method.load_state_dict(state["prior"])
        if self.average is not None:
            self.average.load_state_dict(state["average"], self.device)
        self.micro_batch = state["micro_batch"]
        kinds = {"epoch": Epoch, "adjusted": Adjusted}
        self.facts = [kinds[event["kind"]](**event) for event in state["facts"]]
        self.batch = state["batch"]
        self.sums = _Sums(**state["sums"])


def _sgd(model: torch.nn.Module, more: Iterable[torch.nn.Parameter], asked: recipes.SGD) -> torch.optim.SGD:
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._NormBase)]
    exempt = [] if asked.decay_batch_norms else [p for norm in norms for p in norm.parameters(recurse=False)]
    spared = {id(parameter) for parameter in exempt}
    decayed = [p for p in model.parameters() if id(p) not in spared]
    groups: list[dict[str, Any]] = [{"params": [*decayed, *more]}]
    if exempt:
        groups.append({"params": exempt, "weight_decay": 0.0})
    return torch.optim.SGD(
        groups, lr=asked.lr, momentum=asked.momentum, nesterov=asked.nesterov, weight_decay=asked.weight_decay
    )
