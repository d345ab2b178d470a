"""A recipe and what its run might say, for tests of everything around the library."""

from dkl.architectures import CNN
from dkl.catalog import resolve
from dkl.events import (
    BatchDone,
    DistillResult,
    Epoch,
    EvaluateResult,
    Finished,
    Progress,
    Provenance,
    RobustAt,
    StageResult,
    Started,
    TrainResult,
)
from dkl.lessons import KD
from dkl.protocols import JobResult, ModelSource
from dkl.recipes import SGD, Distill, Recipe, fingerprint

STARTED = Started(device="cpu", versions={"torch": "2.11.0"}, commit=None, resumed=False)
TRAIN = resolve("natural-digits", {})
EPOCH = Epoch(
    epoch=1,
    epochs=2,
    loss=0.5,
    terms={"natural": 0.5},
    clean_accuracy=0.9,
    adversarial_accuracy=None,
    validation_accuracy=None,
    validation_robust_accuracy=None,
    eps=None,
    lr=0.1,
    images_per_second=1000.0,
    seconds=1.0,
    eta_seconds=1.0,
)
PROGRESS = Progress(phase="epoch 1 of 2", done=1, total=2, rate=10, eta_seconds=3)
BATCH = BatchDone(
    stage=3,
    name="apgd-t",
    phase="audit",
    eps=0.2,
    batch=0,
    batches=1,
    images=(3, 5),
    standing="01",
    forwards=1818,
    backwards=1800,
    seconds=1.0,
    rejected=0,
    warnings=(),
)


def distillation(teacher: ModelSource | str, **changes: object) -> Distill:
    """Of a small student on digits; a job is named by its id."""
    source = JobResult(job=teacher) if isinstance(teacher, str) else teacher
    recipe = Distill(
        dataset="digits",
        teacher=source,
        model=CNN(width=8),
        objective=KD(),
        augmentation=None,
        epochs=2,
        optimizer=SGD(lr=0.1),
    )
    return Distill.model_validate({**recipe.model_dump(mode="json"), **changes})


def provenance(recipe: Recipe) -> Provenance:
    return Provenance(
        recipe=recipe.model_dump(mode="json"),
        fingerprint=fingerprint(recipe),
        seed=recipe.seed,
        dataset_sha256="d" * 64,
        checkpoint_sha256="a" * 64,
        device="cpu",
        driver=None,
        flags={"float32_matmul_precision": "highest"},
        platform="Linux-6.8.0-x86_64-with-glibc2.39",
        processor="A Processor 9000",
        versions={"torch": "2.11.0"},
        commit=None,
    )


TRAINED = Finished(
    result=TrainResult(
        checkpoint_sha256="a" * 64,
        parameters=10,
        epochs=2,
        selected_epoch=2,
        clean_accuracy=0.95,
        validation_accuracy=None,
        validation_robust_accuracy=None,
        notes=(),
        provenance=provenance(TRAIN),
        seconds=2.0,
    )
)
DISTILLED = Finished(
    result=DistillResult(
        checkpoint_sha256="b" * 64,
        parameters=5,
        extra_parameters=0,
        epochs=2,
        selected_epoch=2,
        clean_accuracy=0.9,
        class_accuracy=(0.9,),
        many_accuracy=None,
        medium_accuracy=None,
        few_accuracy=None,
        validation_accuracy=None,
        validation_robust_accuracy=None,
        teacher="CNN-32",
        teacher_sha256="a" * 64,
        teacher_accuracy=0.95,
        seconds_per_iteration=0.0125,
        notes=(),
        provenance=provenance(distillation("0123456789ab")),
        seconds=3.0,
    )
)
JUDGED = Finished(
    result=EvaluateResult(
        images=2,
        clean_accuracy=1.0,
        clean_interval=(0.3, 1.0),
        robust_accuracy=0.5,
        robust_interval=(0.1, 0.9),
        curve=(RobustAt(eps=0.2, robust_accuracy=0.5, robust_interval=(0.1, 0.9)),),
        stages=(
            StageResult(
                name="clean",
                phase="clean",
                eps=0.0,
                attacked=2,
                accuracy=1.0,
                forwards=2,
                backwards=0,
                seconds=0.1,
            ),
        ),
        class_clean_accuracy=(1.0,),
        class_robust_accuracy=(0.5,),
        protocol="AutoAttack standard",
        engine="dkl-bench 0.1.0",
        precision="float32",
        notes=(),
        could_still_break=None,
        stopped_early=False,
        rejected=0,
        warnings=(),
        forwards=2,
        backwards=0,
        checkpoint_sha256="a" * 64,
        architecture="CNN-32",
        preprocessing="none",
        evidence_sha256="e" * 64,
        provenance=provenance(resolve("autoattack-digits-linf", {"model.job": "0123456789ab"})),
        seconds=1.0,
    )
)
