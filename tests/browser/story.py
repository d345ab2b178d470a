"""Jobs with believable lives, written through the ledger: what the pages have to show."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from dkl.catalog import resolve
from dkl.events import (
    Adjusted,
    BatchDone,
    Epoch,
    EvaluateResult,
    Finished,
    Phase,
    Progress,
    Provenance,
    RobustAt,
    StageResult,
    Started,
    TrainResult,
)
from dkl.intervals import wilson_interval
from dkl.protocols import Evaluate, show_protocol
from dkl.recipes import Train, fingerprint
from service import claims, jobs
from service.artifacts import Store
from service.tables import Job

SHA256 = "5f2b" * 16
WARNING = "apgd-ce: 3 images have gradients of exactly zero, so gradients may mislead here"
NOTE = (
    "audited at radius 0.1: of 68 survivors of the cheap search, 4 with the smallest margins got the whole suite"
)


@dataclass(frozen=True)
class Site:
    """The service as the browser sees it, and its ledger."""

    url: str
    db: Engine
    artifacts: Store

    def keep(self, content: bytes, folder: Path) -> str:
        """Store a file, by way of `folder`; returns its sha256."""
        (folder / "file").write_bytes(content)
        return self.artifacts.put(folder / "file")


VERSIONS = {"torch": "2.11.0", "dkl-bench": "0.1.0"}
COMMIT = "0123456789abcdef0123456789abcdef01234567-dirty"
STARTED = Started(device="cuda:0", versions=VERSIONS, commit=COMMIT, resumed=False)
ADJUSTED = Adjusted(
    sentence="a batch of 128 images did not fit into 10.7 GiB; going on with two halves, gradients summed up",
    micro_batch=64,
)


def start(db: Engine, job: Job) -> claims.Claim:
    claim = claims.claim(db, job.id, worker="gpu-box:4711", lease_seconds=3600)
    assert claim is not None
    claims.append(db, claim, STARTED)
    return claim


def epoch(number: int, epochs: int, *, adversarial: bool = True, held_out: bool = False) -> Epoch:
    learnt = 1 - math.exp(-3 * number / epochs)
    wave = 0.012 * math.sin(1.7 * number)
    terms = {"natural": 1.5 - 1.1 * learnt + wave}
    if adversarial:
        terms |= {"wmse": 0.5 - 0.3 * learnt, "soft_ce": 0.3 * learnt - wave}
    return Epoch(
        epoch=number,
        epochs=epochs,
        loss=sum(terms.values()),
        terms=terms,
        clean_accuracy=0.1 + 0.85 * learnt,
        adversarial_accuracy=0.1 + 0.6 * learnt if adversarial else None,
        validation_accuracy=0.1 + 0.8 * learnt + wave if held_out else None,
        validation_robust_accuracy=0.1 + 0.5 * learnt - wave if held_out and adversarial else None,
        eps=0.15 * number / epochs if adversarial else None,
        lr=0.05 * (1 + math.cos(math.pi * number / epochs)),
        images_per_second=5120.0,
        seconds=1.3,
        eta_seconds=1.3 * (epochs - number),
    )


def progress(done: float, total: float, phase: str) -> Progress:
    return Progress(phase=phase, done=done, total=total, rate=5120, eta_seconds=1.3 * (total - done))


def trained(
    db: Engine, name: str, *, epochs: int = 30, accuracy: float = 0.95, overrides: dict[str, Any] | None = None
) -> Job:
    recipe = resolve(name, {"epochs": epochs, **(overrides or {})})
    assert isinstance(recipe, Train)
    job = jobs.create(db, recipe, name=name)
    claim = start(db, job)
    for number in range(1, epochs + 1):
        adversarial, held_out = recipe.threat is not None, recipe.validation is not None
        claims.append(db, claim, epoch(number, epochs, adversarial=adversarial, held_out=held_out))
    claims.finish(db, claim, Finished(result=training_result(recipe, accuracy)))
    return jobs.get(db, job.id)


def provenance(recipe: Train | Evaluate) -> Provenance:
    return Provenance(
        recipe=recipe.model_dump(mode="json"),
        fingerprint=fingerprint(recipe),
        seed=recipe.seed,
        dataset_sha256="d47a" * 16,
        checkpoint_sha256=SHA256,
        device="cuda:0 (NVIDIA H200)",
        driver={"nvidia": "580.95.05", "cuda": "13.0", "cudnn": "91300"},
        flags={"float32_matmul_precision": "highest", "cudnn_allow_tf32": True, "cudnn_benchmark": False},
        platform="Linux-6.8.0-x86_64-with-glibc2.39",
        processor="AMD EPYC 9654 96-Core Processor",
        versions=VERSIONS,
        commit=COMMIT,
    )


def training_result(recipe: Train, accuracy: float, **changes: Any) -> TrainResult:
    held_out = recipe.validation is not None
    result = TrainResult(
        checkpoint_sha256=SHA256,
        parameters=46_162_868,
        epochs=recipe.epochs,
        selected_epoch=recipe.epochs,
        clean_accuracy=accuracy,
        validation_accuracy=accuracy - 0.01 if held_out else None,
        validation_robust_accuracy=accuracy - 0.35 if held_out and recipe.threat else None,
        notes=(),
        provenance=provenance(recipe),
        seconds=1.3 * recipe.epochs,
    )
    return result.model_copy(update=changes)


def batch(
    stage: int,
    name: str,
    images: Sequence[int],
    broken: int = 0,
    *,
    phase: Phase = "suite",
    eps: float = 0.2,
    number: int = 0,
    batches: int = 1,
    warnings: tuple[str, ...] = (),
) -> BatchDone:
    """A stage is through with these images; the first `broken` of them fell, or were wrong at once."""
    return BatchDone(
        stage=stage,
        name=name,
        phase="clean" if stage == 0 else phase,
        eps=eps if stage else 0.0,
        batch=number,
        batches=batches,
        images=tuple(images),
        standing="0" * broken + "1" * (len(images) - broken),
        forwards=100 * len(images) if stage else len(images),
        backwards=100 * len(images) if stage else 0,
        seconds=3.7,
        rejected=0,
        warnings=warnings,
    )


def judged(
    db: Engine,
    model: Job,
    name: str = "autoattack-digits-linf",
    *,
    clean: float = 0.95,
    robust: float = 0.6,
    images: int = 100,
    overrides: dict[str, Any] | None = None,
    **result: Any,
) -> Job:
    """An evaluation that has ended, with the accuracies exactly as asked for and other fields of its result."""
    recipe = resolve(name, {"model.job": model.id, **(overrides or {})})
    assert isinstance(recipe, Evaluate)
    job = jobs.create(db, recipe, name=name)
    claim = start(db, job)
    claims.append(db, claim, batch(0, "clean", range(images), images - round(clean * images)))
    ended = result_of(recipe, clean=clean, robust=robust, images=images).model_copy(update=result)
    claims.finish(db, claim, Finished(result=ended))
    return jobs.get(db, job.id)


def result_of(recipe: Evaluate, *, clean: float, robust: float, images: int) -> EvaluateResult:
    """What the library would say; with several radii, each breaks as much as the others."""
    radii = recipe.radii()
    ends = [clean - (clean - robust) * (at + 1) / len(radii) for at in range(len(radii))]
    stages = [stage("clean", "clean", 0.0, images, clean)]
    for (before, after), eps in zip(pairwise([clean, *ends]), radii, strict=True):
        for attack, part in zip(recipe.attacks(), (0.8, 0.97, 0.97, 1), strict=True):
            attacked = round(stages[-1].accuracy * images)
            accuracy = before - (before - after) * part
            stages.append(stage(attack.kind, _PHASES[recipe.policy], eps, attacked, accuracy))
    classes = 100 if recipe.dataset == "cifar100" else 10
    return EvaluateResult(
        images=images,
        clean_accuracy=clean,
        clean_interval=wilson_interval(round(clean * images), images),
        robust_accuracy=robust,
        robust_interval=wilson_interval(round(robust * images), images),
        curve=tuple(
            RobustAt(eps=eps, robust_accuracy=a, robust_interval=wilson_interval(round(a * images), images))
            for eps, a in zip(radii, ends, strict=True)
        ),
        stages=tuple(stages),
        class_clean_accuracy=tuple(min(1.0, clean + 0.003 * (k % 10)) for k in range(classes)),
        class_robust_accuracy=(*(max(0.0, robust - 0.05 * (k % 10)) for k in range(classes - 1)), None),
        protocol=show_protocol(recipe.suite, recipe.policy),
        engine="pyautoattack 0.2.0" if recipe.engine == "pyautoattack" else "dkl-bench 0.1.0",
        precision="float32",
        notes=(),
        could_still_break=None,
        stopped_early=False,
        rejected=0,
        warnings=(),
        forwards=sum(s.forwards for s in stages),
        backwards=sum(s.backwards for s in stages),
        checkpoint_sha256=SHA256,
        architecture="CNN-32",
        preprocessing="none",
        provenance=provenance(recipe),
        evidence_sha256="e" * 64,
        seconds=sum(s.seconds for s in stages),
    )


_PHASES: dict[str, Phase] = {"exact": "suite", "fast": "search", "audited": "audit", "screen": "screen"}


def stage(name: str, phase: Phase, eps: float, attacked: int, accuracy: float) -> StageResult:
    passes = 1000 * attacked
    return StageResult(
        name=name,
        phase=phase,
        eps=eps,
        attacked=attacked,
        accuracy=accuracy,
        forwards=passes if eps else attacked,
        backwards=passes if eps and name != "square" else 0,
        seconds=3.7,
    )
