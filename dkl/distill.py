"""Distilling: a student, a frozen teacher, any objective; the loop is that of training."""

from collections.abc import Generator
from pathlib import Path
from statistics import median

from dkl import datasets, recipes
from dkl.batches import TrainingData, training_data
from dkl.events import DistillResult, Epoch, Event, Finished
from dkl.execution import make_network
from dkl.provenance import provenance
from dkl.run import Run
from dkl.shots import shots
from dkl.teacher import Teacher
from dkl.teaching import Teaching
from dkl.train import choose, fitted
from dkl.validation import class_accuracy, clean_accuracy
from dkl.weights import LoadedModel
from dkl.world import ALONE


def distill(
    recipe: recipes.Distill, loaded: LoadedModel, workdir: Path, *, device: str, data_dir: Path
) -> Generator[Event, None, None]:
    """Distil the teacher `loaded` into a new student, yielding what `dkl.train.train` yields.

    Goes on from what an earlier run of the same recipe left in `workdir`. The result is
    `workdir/model.safetensors`. Raises what `train` raises, and ValueError where teacher and data do not fit.
    """
    data = training_data(recipe, data_dir, device)
    test = datasets.load(recipe.dataset, "test", data_dir)
    teacher = _teacher(recipe, loaded, data, device)
    method = Teaching(recipe, teacher, classes=data.classes, device=device)
    run = Run(recipe, method, data, device, ALONE)
    yield from fitted(run, workdir, get_ready=lambda: method.get_ready(data.batches))
    chosen = choose(run, workdir)
    by_class = class_accuracy(run.model, test, device)
    groups = shots(data.class_counts, by_class)
    yield Finished(
        result=DistillResult(
            checkpoint_sha256=chosen.sha256,
            parameters=chosen.parameters,
            extra_parameters=run.extra_parameters,
            epochs=recipe.epochs,
            selected_epoch=chosen.epoch.epoch,
            clean_accuracy=clean_accuracy(run.model, test, device),
            class_accuracy=by_class,
            many_accuracy=groups and groups.many,
            medium_accuracy=groups and groups.medium,
            few_accuracy=groups and groups.few,
            validation_accuracy=chosen.epoch.validation_accuracy,
            validation_robust_accuracy=chosen.epoch.validation_robust_accuracy,
            teacher=teacher.architecture,
            teacher_sha256=teacher.sha256,
            teacher_accuracy=clean_accuracy(teacher.model, test, device),
            seconds_per_iteration=_seconds_per_iteration(run.epochs, recipe.batch_size),
            notes=(*loaded.notes, *chosen.notes),
            provenance=provenance(recipe, device, dataset_sha256=data.sha256, checkpoint_sha256=chosen.sha256),
            seconds=chosen.seconds,
        )
    )


def _teacher(recipe: recipes.Distill, loaded: LoadedModel, data: TrainingData, device: str) -> Teacher:
    network = make_network(loaded.model.to(device), recipe, device, ALONE)
    return Teacher(loaded, network.forward, dataset=recipe.dataset, channels=data.channels, classes=data.classes)


def _seconds_per_iteration(epochs: list[Epoch], batch_size: int) -> float:
    return median(batch_size / epoch.images_per_second for epoch in epochs)
