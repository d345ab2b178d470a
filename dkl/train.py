"""Training: natural and adversarial, any objective. One loop, as an iterator of events.

A run may be stopped at any event by closing the iterator; run again, it ends with the same weights, bit for bit,
as if it had never stopped (on a CPU with one process or two; GPUs, and three processes, add in no fixed order).
For that `last.pt` in the work directory holds all that changes, and every random number follows from (seed, epoch,
batch).
"""

import time
from collections.abc import Generator
from pathlib import Path

from dkl import datasets, recipes, weights
from dkl.batches import training_data
from dkl.events import Adjusted, Epoch, Event, Finished, TrainResult
from dkl.provenance import provenance
from dkl.run import Run
from dkl.tensors import State
from dkl.validation import clean_accuracy
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
    run = Run(recipe, data, device, world)
    files = _Files(workdir, writes=world.rank == 0)
    if (state := weights.load_state(files.last)) is not None:
        run.load_state_dict(state)
    yield from run.facts
    try:
        while run.epoch <= recipe.epochs:
            while run.batch < len(data.batches):
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
    if test is not None:
        yield Finished(result=_finish(run, files, workdir / "model.safetensors", test))


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


def _finish(run: Run, files: _Files, path: Path, test: datasets.Arrays) -> TrainResult:
    """Write the chosen weights to `path` and judge them on the clean test images."""
    recipe = run.recipe
    selected = best_epoch(run.epochs) if recipe.select == "best" else recipe.epochs
    state: State | None = run.result_state()
    if selected != recipe.epochs:
        state = weights.load_state(files.best(selected))
    assert state is not None
    run.model.load_state_dict(state)
    sha256 = weights.save_checkpoint(
        path,
        run.model,
        architecture=recipe.model,
        channels=run.data.channels,
        classes=run.data.classes,
        dataset=recipe.dataset,
    )
    chosen = run.epochs[selected - 1]
    return TrainResult(
        checkpoint_sha256=sha256,
        parameters=sum(parameter.numel() for parameter in run.model.parameters()),
        epochs=recipe.epochs,
        selected_epoch=selected,
        clean_accuracy=clean_accuracy(run.model, test, run.device),
        validation_accuracy=chosen.validation_accuracy,
        validation_robust_accuracy=chosen.validation_robust_accuracy,
        notes=tuple(fact.sentence for fact in run.facts if isinstance(fact, Adjusted)),
        provenance=provenance(recipe, run.device, dataset_sha256=run.data.sha256, checkpoint_sha256=sha256),
        seconds=sum(epoch.seconds for epoch in run.epochs),
    )
