"""Jobs with believable lives, written through the ledger: what the pages have to show."""

import math
import random
from dataclasses import dataclass

import numpy as np
from sqlalchemy import Engine

from dkl.catalog import resolve
from dkl.events import ChunkDone, Epoch, EvaluateResult, Finished, Progress, Stage, Started, TrainResult
from dkl.recipes import Evaluate, Train
from dkl.summary import summarise, wilson_interval
from service import jobs
from service.db import Job

SHA256 = "5f2b" * 16


@dataclass(frozen=True)
class Site:
    """The service as the browser sees it, and its ledger."""

    url: str
    db: Engine


STARTED = Started(device="cuda:0", versions={"torch": "2.11.0", "dkl-bench": "0.1.0"}, resumed=False)


def start(db: Engine, job: Job) -> jobs.Claim:
    claim = jobs.claim(db, job.id, worker="gpu-box:4711", lease_seconds=3600)
    assert claim is not None
    jobs.append(db, claim, STARTED)
    return claim


def epoch(number: int, epochs: int, *, adversarial: bool = True) -> Epoch:
    learnt = 1 - math.exp(-3 * number / epochs)
    return Epoch(
        epoch=number,
        epochs=epochs,
        loss=2.3 - 1.7 * learnt,
        clean_accuracy=0.1 + 0.85 * learnt,
        adversarial_accuracy=0.1 + 0.6 * learnt if adversarial else None,
        eps=0.15 * number / epochs if adversarial else None,
        lr=0.05 * (1 + math.cos(math.pi * number / epochs)),
        seconds=1.3,
    )


def progress(done: float, total: float, phase: str) -> Progress:
    return Progress(phase=phase, done=done, total=total, rate=5120, eta_seconds=1.3 * (total - done))


def trained(db: Engine, name: str, *, epochs: int = 30, accuracy: float = 0.95) -> Job:
    job = jobs.create(db, resolve(name, {"epochs": epochs}), name=name)
    claim = start(db, job)
    assert isinstance(claim.recipe, Train)
    for number in range(1, epochs + 1):
        jobs.append(db, claim, epoch(number, epochs, adversarial=claim.recipe.threat is not None))
    result = TrainResult(
        checkpoint_sha256=SHA256,
        parameters=46_162_868,
        epochs=epochs,
        clean_accuracy=accuracy,
        seconds=1.3 * epochs,
    )
    jobs.finish(db, claim, Finished(result=result))
    return jobs.get(db, job.id)


def chunk(number: int, chunks: int, size: int, accuracies: list[float], names: list[str]) -> ChunkDone:
    dice = random.Random(number)
    strength = [dice.random() for _ in range(size)]
    return ChunkDone(
        chunk=number,
        chunks=chunks,
        first_image=number * size,
        stages=tuple(
            Stage(name=name, standing="".join("1" if s < a else "0" for s in strength), seconds=3.7)
            for name, a in zip(names, accuracies, strict=True)
        ),
        rejected=0,
        warnings=(),
    )


def judged(
    db: Engine,
    model: Job,
    name: str = "autoattack-digits-linf",
    *,
    clean: float = 0.95,
    robust: float = 0.6,
    architecture: str = "CNN-32",
    images: int = 100,
    warnings: tuple[str, ...] = (),
) -> Job:
    recipe = resolve(name, {"model.job": model.id})
    assert isinstance(recipe, Evaluate)
    job = jobs.create(db, recipe, name=name)
    claim = start(db, job)
    names = ["clean", *(attack.kind for attack in recipe.attacks())]
    drops = [clean - (clean - robust) * part for part in (0, 0.8, 0.97, 0.97, 1)]
    done = chunk(0, 1, images, drops, names)
    jobs.append(db, claim, done)
    classes = 10 if recipe.dataset != "cifar100" else 100
    result = summarise_exactly(done, drops, classes=classes, architecture=architecture, warnings=warnings)
    jobs.finish(db, claim, Finished(result=result))
    return jobs.get(db, job.id)


def summarise_exactly(
    done: ChunkDone, drops: list[float], *, classes: int, architecture: str, warnings: tuple[str, ...]
) -> EvaluateResult:
    """What the library would say, with the accuracies exactly as asked for."""
    images = len(done.stages[0].standing)
    result = summarise(
        [done],
        np.arange(images) % classes,
        classes=classes,
        checkpoint_sha256=SHA256,
        architecture=architecture,
        engine="pyautoattack 0.2.0",
    )
    stages = [s.model_copy(update={"accuracy": a}) for s, a in zip(result.stages, drops, strict=True)]
    return result.model_copy(
        update={
            "clean_accuracy": drops[0],
            "robust_accuracy": drops[-1],
            "robust_interval": wilson_interval(round(drops[-1] * images), images),
            "stages": tuple(stages),
            "warnings": warnings,
        }
    )
