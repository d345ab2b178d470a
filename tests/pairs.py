"""Evaluations of several models on the same images, verdict by verdict, written through the ledger."""

from pathlib import Path
from typing import Any

import numpy as np
from browser import story
from exhibits import Shown, store
from numpy.typing import ArrayLike, NDArray
from sqlalchemy import Engine

from dkl.catalog import resolve
from dkl.flags import Flags, pack
from dkl.protocols import Evaluate
from service import claims, jobs
from service.artifacts import Store
from service.tables import Job

DATA = "d47a" * 16
"""The sha256 of the images that tests/exhibits.py writes evidence about."""
CLASSES = 10


def judged(
    db: Engine,
    model: Job,
    clean: ArrayLike,
    robust: ArrayLike,
    *,
    name: str = "autoattack-digits-linf",
    data: str = DATA,
    flags: bool = True,
    evidence: tuple[Store, Path] | None = None,
    pictures: int = 256,
    overrides: dict[str, Any] | None = None,
) -> Job:
    """An evaluation that has ended with these flags (N,), image k being of class k modulo 10.

    With `evidence`, a store and a folder to write in, it left a file that says the same.
    """
    right, standing = np.asarray(clean, bool), np.asarray(robust, bool)
    recipe = resolve(name, {"model.job": model.id, **(overrides or {})})
    assert isinstance(recipe, Evaluate)
    job = jobs.create(db, recipe, name=name)
    claim = story.start(db, job)
    kept = Flags(data_sha256=data, clean=pack(right), robust=pack(standing)) if flags else None
    sha256 = _evidence(*evidence, recipe, right, standing, pictures) if evidence else "e" * 64
    ended = story.result_of(recipe, clean=right.mean(), robust=standing.mean(), images=len(right)).model_copy(
        update={
            "flags": kept,
            "evidence_sha256": sha256,
            "class_clean_accuracy": _by_class(right),
            "class_robust_accuracy": _by_class(standing),
        }
    )
    claims.finish(db, claim, story.Finished(result=ended))
    return jobs.get(db, job.id)


def _by_class(flags: NDArray[np.bool_]) -> tuple[float | None, ...]:
    parts = [flags[k::CLASSES] for k in range(CLASSES)]
    return tuple(float(part.mean()) if len(part) else None for part in parts)


def _evidence(
    artifacts: Store,
    folder: Path,
    recipe: Evaluate,
    clean: NDArray[np.bool_],
    robust: NDArray[np.bool_],
    pictures: int,
) -> str:
    """A model that is wrong takes an image for the next class, or, under attack, for the one after it."""
    labels = np.arange(len(clean)) % CLASSES
    fell = clean & ~robust
    changes = {
        "clean_correct": clean,
        "broken_at": np.where(fell, recipe.radii().index(recipe.threat.eps), -1).astype(np.int8),
        "stage": np.where(fell, 1, -1).astype(np.int16),
        "predicted": np.where(clean, labels, (labels + 1) % CLASSES).astype(np.int32),
        "predicted_adv": np.where(fell, (labels + 2) % CLASSES, -1).astype(np.int32),
    }
    return store(artifacts, recipe, Shown(images=len(clean), pictures=pictures, changes=changes), folder)


def standing(images: int, *rows: int) -> NDArray[np.bool_]:
    """Flags (N,) that hold for these rows."""
    flags = np.zeros(images, np.bool_)
    flags[list(rows)] = True
    return flags
