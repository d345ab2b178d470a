"""Distilling: a student, a frozen teacher, any objective; the loop is that of training."""

from collections.abc import Generator
from functools import partial
from pathlib import Path
from statistics import median

from dkl import datasets, recipes
from dkl.batches import TrainingData, training_data
from dkl.events import DistillResult, Epoch, Event, Finished
from dkl.execution import make_network
from dkl.feature_teaching import FeatureTeaching
from dkl.kept_logits import KeptTeacher, keep
from dkl.lessons import FeatureLesson
from dkl.provenance import provenance
from dkl.run import Run
from dkl.shots import shots
from dkl.teacher import Teacher, TeacherLogits
from dkl.teaching import Teaching
from dkl.train import choose, fitted
from dkl.validation import clean_accuracies, clean_accuracy
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
    says = keep(teacher, recipe, data, data_dir, device) if recipe.keep_teacher else teacher
    method = _method(recipe, teacher, says, data, device)
    run = Run(recipe, method, data, device, ALONE)
    get_ready = partial(method.get_ready, data.batches) if isinstance(method, Teaching) else tuple
    yield from fitted(run, workdir, get_ready=get_ready)
    chosen = choose(run, workdir)
    clean = clean_accuracies(run.model, test, device)
    groups = shots(data.class_counts, clean.by_class)
    yield Finished(
        result=DistillResult(
            checkpoint_sha256=chosen.sha256,
            parameters=chosen.parameters,
            extra_parameters=method.extra_parameters,
            epochs=recipe.epochs,
            selected_epoch=chosen.epoch.epoch,
            clean_accuracy=clean.accuracy,
            class_accuracy=clean.by_class,
            many_accuracy=groups and groups.many,
            medium_accuracy=groups and groups.medium,
            few_accuracy=groups and groups.few,
            validation_accuracy=chosen.epoch.validation_accuracy,
            validation_robust_accuracy=chosen.epoch.validation_robust_accuracy,
            teacher=teacher.architecture,
            teacher_sha256=teacher.sha256,
            teacher_accuracy=clean_accuracy(teacher.model, test, device),
            seconds_per_iteration=_seconds_per_iteration(run.epochs, recipe.batch_size),
            notes=(*loaded.notes, *chosen.notes, *_notes(says)),
            provenance=provenance(
                recipe,
                device,
                dataset_sha256=data.sha256,
                checkpoint_sha256=chosen.sha256,
                packages=loaded.packages,
            ),
            seconds=chosen.seconds,
        )
    )


def _teacher(recipe: recipes.Distill, loaded: LoadedModel, data: TrainingData, device: str) -> Teacher:
    network = make_network(loaded.model.to(device), recipe, device, ALONE)
    return Teacher(loaded, network.forward, dataset=recipe.dataset, channels=data.channels, classes=data.classes)


def _method(
    recipe: recipes.Distill, teacher: Teacher, says: TeacherLogits, data: TrainingData, device: str
) -> Teaching | FeatureTeaching:
    if isinstance(recipe.objective, FeatureLesson):
        return FeatureTeaching(recipe, teacher, data, device=device)
    return Teaching(recipe, says, classes=data.classes, device=device)


def _notes(says: TeacherLogits) -> tuple[str, ...]:
    if not isinstance(says, KeptTeacher) or not says.found:
        return ()
    return (
        f"the teacher's logits of {says.found} batches were on disk already, so that the seconds per iteration "
        "leave its forward passes out",
    )


def _seconds_per_iteration(epochs: list[Epoch], batch_size: int) -> float:
    return median(batch_size / epoch.images_per_second for epoch in epochs)
