"""Training: natural and adversarial, any objective. One loop, as an iterator of events.

A run may be stopped at any event by closing the iterator; run again, it ends with the same weights, bit for bit,
as if it had never stopped (on a CPU with one process or two; GPUs, and three processes, add in no fixed order).
For that `last.pt` in the work directory holds all that changes, and every random number follows from (seed, epoch,
batch).
"""

import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import NamedTuple

from dkl import datasets, recipes, weights
from dkl.adversarial import Adversarial
from dkl.batches import TrainingData, training_data
from dkl.dajat import DiverseViews
from dkl.events import Adjusted, Epoch, Event, Finished, Progress, TrainResult
from dkl.las import LearntStrategy
from dkl.lbgat import BoundaryGuided
from dkl.method import Method
from dkl.objectives import DAJAT, LASAT, LASTRADES, LBGAT
from dkl.provenance import provenance
from dkl.run import Run
from dkl.shots import shots
from dkl.tensors import State
from dkl.validation import clean_accuracies
from dkl.world import ALONE, World

_KEEP_SECONDS = 600
"""How much work a killed run may lose: its state is kept after every epoch, and within a long one this often."""


def train(
    recipe: recipes.Train, workdir: Path, *, device: str, data_dir: Path, world: World = ALONE
) -> Generator[Event, None, None]:
    """Train, yielding `Progress` after every batch, `Epoch` after every epoch and `Finished` at the end.

    Goes on from what an earlier run of the same recipe left in `workdir`, whose epochs are said again first. The
    result is `workdir/model.safetensors`. Every process of `world` calls this and yields the same events, but the
    first alone writes files and says `Finished`. Raises FloatingPointError where the loss is not finite, before
    the update; DatasetError; CheckpointError where `last.pt` is damaged; ValueError where it is another recipe's;
    MemoryError where not even a single image fits.
    """
    data = training_data(recipe, data_dir, device)
    # Only one process judges the result; that the images are missing is to be known before the training.
    test = datasets.load(recipe.dataset, "test", data_dir) if world.rank == 0 else None
    run = Run(recipe, _method(recipe, data, device, world), data, device, world)
    yield from fitted(run, workdir)
    if test is not None:
        chosen = choose(run, workdir)
        clean = clean_accuracies(run.model, test, device)
        groups = shots(data.class_counts, clean.by_class)
        yield Finished(
            result=TrainResult(
                checkpoint_sha256=chosen.sha256,
                parameters=chosen.parameters,
                epochs=recipe.epochs,
                selected_epoch=chosen.epoch.epoch,
                clean_accuracy=clean.accuracy,
                many_accuracy=groups and groups.many,
                medium_accuracy=groups and groups.medium,
                few_accuracy=groups and groups.few,
                validation_accuracy=chosen.epoch.validation_accuracy,
                validation_robust_accuracy=chosen.epoch.validation_robust_accuracy,
                notes=chosen.notes,
                provenance=provenance(recipe, device, dataset_sha256=data.sha256, checkpoint_sha256=chosen.sha256),
                seconds=chosen.seconds,
            )
        )


def _method(recipe: recipes.Train, data: TrainingData, device: str, world: World) -> Method:
    match recipe.objective:
        case LBGAT():
            return BoundaryGuided(recipe, channels=data.channels, classes=data.classes, device=device, world=world)
        case DAJAT():
            return DiverseViews(recipe, device=device, world=world)
        case LASAT() | LASTRADES():
            return LearntStrategy(recipe, channels=data.channels, classes=data.classes, device=device, world=world)
        case _:
            return Adversarial(recipe, classes=data.classes, device=device, world=world)


# --- the loop, whatever the method ------------------------------------------------------------------------


def fitted(
    run: Run, workdir: Path, *, get_ready: Callable[[], Iterable[Progress]] = tuple
) -> Generator[Event, None, None]:
    """Take `run` to its end from what is in `workdir`, yielding `Progress`, `Epoch` and `Adjusted`.

    `get_ready` is called before the next update of it.
    """
    files = _Files(workdir, writes=run.world.rank == 0)
    if (state := weights.load_state(files.last)) is not None:
        run.load_state_dict(state)
    yield from run.facts
    yield from get_ready()
    try:
        while run.epoch <= run.recipe.epochs:
            while run.batch < len(run.data.batches):
                if (adjusted := run.step()) is not None:
                    yield adjusted
                    continue
                files.keep_if_due(run)
                yield run.progress()
            epoch = run.end_epoch()
            files.keep_epoch(run)
            yield epoch
    except GeneratorExit:
        files.keep(run)
        raise


class Chosen(NamedTuple):
    """The weights that are the result; the run's model has them."""

    sha256: str
    """Of the checkpoint."""
    parameters: int
    epoch: Epoch
    """After which they were as they are."""
    notes: tuple[str, ...]
    seconds: float


def choose(run: Run, workdir: Path) -> Chosen:
    """Give the model of a finished run the weights that are its result, and write them to the checkpoint."""
    recipe, files = run.recipe, _Files(workdir, writes=True)
    selected = best_epoch(run.epochs) if recipe.select == "best" else recipe.epochs
    state: State | None = run.result_state()
    if selected != recipe.epochs:
        state = weights.load_state(files.best(selected))
    assert state is not None
    run.model.load_state_dict(state)
    sha256 = weights.save_checkpoint(
        workdir / "model.safetensors",
        run.model,
        architecture=recipe.model,
        channels=run.data.channels,
        classes=run.data.classes,
        dataset=recipe.dataset,
    )
    return Chosen(
        sha256=sha256,
        parameters=sum(parameter.numel() for parameter in run.model.parameters()),
        epoch=run.epochs[selected - 1],
        notes=tuple(fact.sentence for fact in run.facts if isinstance(fact, Adjusted)),
        seconds=sum(epoch.seconds for epoch in run.epochs),
    )


class _Files:
    """What a run keeps in its work directory. Only one process of several writes."""

    def __init__(self, workdir: Path, *, writes: bool) -> None:
        self.workdir = workdir
        self.last = workdir / "last.pt"
        self.writes = writes
        self._kept_at = time.monotonic()

    def keep(self, run: Run) -> None:
        if self.writes:
            weights.save_state(self.last, run.state_dict())
            self._kept_at = time.monotonic()

    def keep_if_due(self, run: Run) -> None:
        if time.monotonic() - self._kept_at > _KEEP_SECONDS:
            self.keep(run)

    def keep_epoch(self, run: Run) -> None:
        """Keep the state after an epoch, and its weights if no epoch before was as good.

        These come first and say in their name which epoch they are of: after a crash in between, `last.pt` is
        still of the epoch before, whose best is still there.
        """
        if run.recipe.select == "best" and best_epoch(run.epochs) == run.epochs[-1].epoch and self.writes:
            weights.save_state(self.best(run.epochs[-1].epoch), dict(run.result_state()))
        self.keep(run)
        if run.recipe.select == "best" and self.writes:
            for path in self.workdir.glob("best-*.pt"):
                if path != self.best(best_epoch(run.epochs)):
                    path.unlink()

    def best(self, epoch: int) -> Path:
        return self.workdir / f"best-{epoch}.pt"


def best_epoch(epochs: list[Epoch]) -> int:
    """The number of the epoch with the highest accuracy on the validation images, robust where there is one."""

    def accuracy(epoch: Epoch) -> float:
        robust, clean = epoch.validation_robust_accuracy, epoch.validation_accuracy
        assert clean is not None
        return clean if robust is None else robust

    return max(epochs, key=accuracy).epoch  # the earliest of equals
