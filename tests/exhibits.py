"""Files of evidence as evaluations leave them, with images that one can look at; no model has seen these."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from samples import JUDGED
from sqlalchemy import Engine

from dkl.catalog import resolve
from dkl.events import EvaluateResult, Finished, RobustAt, StageResult
from dkl.intervals import wilson_interval
from dkl.protocols import Evaluate
from service import claims, jobs
from service.artifacts import Store
from service.tables import Job

Tables = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Shown:
    """What a file of evidence is to say: of the images the last ones are wrong at once, and of the others every
    second one falls until `robust` are left."""

    images: int = 40
    clean: int = 36
    robust: int = 20
    classes: int = 10
    shape: tuple[int, int, int] = (1, 8, 8)
    pictures: int = 24
    """Images whose clean picture is stored: those at the front."""
    form: int = 2
    """Of the file."""
    changes: Tables = field(default_factory=dict)
    """Tables that are to be others."""


def judged(
    db: Engine,
    artifacts: Store,
    folder: Path,
    shown: Shown,
    name: str = "autoattack-digits-linf",
    *,
    overrides: dict[str, Any] | None = None,
    **result: Any,
) -> Job:
    """An evaluation that has ended, went through the ledger, and left such a file; of a stored checkpoint unless
    the `overrides` say otherwise. Other fields of its result as asked for."""
    model = {} if "model.job" in (overrides or {}) else {"model.checkpoint": "a" * 64}
    recipe = resolve(name, {**model, **(overrides or {})})
    assert isinstance(recipe, Evaluate)
    job = jobs.create(db, recipe, name=name)
    claim = claims.claim(db, job.id, worker="w", lease_seconds=60)
    assert claim is not None
    found = _result(recipe, shown).model_copy(
        update={"evidence_sha256": store(artifacts, recipe, shown, folder), **result}
    )
    claims.finish(db, claim, Finished(result=found))
    return jobs.get(db, job.id)


def _result(recipe: Evaluate, shown: Shown) -> EvaluateResult:
    """What the library would say of it."""
    found, radii = tables(recipe, shown), recipe.radii()
    standing = [
        found["clean_correct"] & ((found["broken_at"] < 0) | (found["broken_at"] > at)) for at in range(len(radii))
    ]
    clean, robust = found["clean_correct"], standing[radii.index(recipe.threat.eps)]
    left, stages = shown.images, []
    for number, (kind, phase, eps) in enumerate(_stages(recipe)):
        attacked, broken = left, int((found["stage"] == number).sum()) if number else shown.images - shown.clean
        left -= broken
        accuracy = left / shown.images
        stages.append(StageResult(name=kind, phase=phase, eps=eps, attacked=attacked, accuracy=accuracy,
                                  forwards=attacked, backwards=attacked, seconds=1.5))  # fmt: skip
    return JUDGED.result.model_copy(
        update={
            "images": shown.images,
            "clean_accuracy": float(clean.mean()),
            "clean_interval": _interval(clean),
            "robust_accuracy": float(robust.mean()),
            "robust_interval": _interval(robust),
            "curve": tuple(
                RobustAt(eps=eps, robust_accuracy=float(flags.mean()), robust_interval=_interval(flags))
                for eps, flags in zip(radii, standing, strict=True)
            ),
            "stages": tuple(stages),
            "class_clean_accuracy": _per_class(clean, found["labels"], shown.classes),
            "class_robust_accuracy": _per_class(robust, found["labels"], shown.classes),
        }
    )


def _interval(flags: NDArray[np.bool_]) -> tuple[float, float]:
    return wilson_interval(int(flags.sum()), len(flags))


def _per_class(flags: NDArray[np.bool_], labels: NDArray[np.int64], classes: int) -> tuple[float | None, ...]:
    return tuple(float(flags[labels == k].mean()) if (labels == k).any() else None for k in range(classes))


def store(artifacts: Store, recipe: Evaluate, shown: Shown, folder: Path) -> str:
    """Put such a file into the store; its sha256."""
    path = folder / "evidence.safetensors"
    path.write_bytes(content(recipe, shown))
    return artifacts.put(path)


def content(recipe: Evaluate, shown: Shown) -> bytes:
    document = {
        "format": shown.form,
        **_whose(recipe),
        "stages": [{"name": name, "phase": phase, "eps": eps} for name, phase, eps in _stages(recipe)],
        "checkpoint_sha256": "5f2b" * 16,
        "data_sha256": "d47a" * 16,
        "engine": "dkl-bench 0.1.0",
        "versions": {"python": "3"},
    }
    found = {**tables(recipe, shown), **shown.changes}
    arrays = {name: np.ascontiguousarray(array) if array.ndim else array for name, array in found.items()}
    return safetensors.numpy.save(arrays, metadata={"dkl": json.dumps(document)})


def _whose(recipe: Evaluate) -> dict[str, Any]:
    document = recipe.model_dump(mode="json")
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    return {"recipe": document, "fingerprint": hashlib.sha256(canonical).hexdigest()}


def _stages(recipe: Evaluate) -> list[tuple[str, str, float]]:
    attacks = [(attack.kind, "suite", eps) for eps in recipe.radii() for attack in recipe.attacks()]
    return [("clean", "clean", 0.0), *attacks]


def tables(recipe: Evaluate, shown: Shown) -> Tables:
    count, radii = shown.images, recipe.radii()
    rows = np.arange(count)
    labels = rows % shown.classes
    clean = rows < shown.clean
    falling = np.concatenate([rows[: shown.clean : 2], rows[1 : shown.clean : 2]])[: shown.clean - shown.robust]
    broken = np.isin(rows, falling)
    broken_at = np.where(broken, rows % len(radii), -1)
    attacks = len(recipe.attacks())
    wrong = (labels + 1 + rows % 2) % shown.classes
    in_8_bits, in_32_bits = rows[broken & (rows % 8 < 6)], rows[broken & (rows % 8 >= 6)]
    originals = pictures(shown)
    adversarial = attacked(originals, recipe.threat.eps)
    found: Tables = {
        "images": rows.astype(np.int64) * 2,
        "labels": labels.astype(np.int64),
        "clean_correct": clean,
        "radii": np.array(radii, np.float64),
        "broken_at": broken_at.astype(np.int8),
        "stage": np.where(broken, 1 + broken_at * attacks + rows % attacks, -1).astype(np.int16),
        "restart": np.where(broken, 0, -1).astype(np.int16),
        "target": np.full(count, -1, np.int16),
        "step": np.where(broken, 17, -1).astype(np.int32),
        "margin": np.zeros(count, np.float32),
        "rows8": in_8_bits.astype(np.int32),
        "x8": adversarial[in_8_bits],
        "rows32": in_32_bits.astype(np.int32),
        "x32": adversarial[in_32_bits].astype(np.float32) / 255,
    }
    if shown.form == 1:
        return found
    return found | {
        "predicted": np.where(clean, labels, wrong).astype(np.int32),
        "predicted_adv": np.where(broken, wrong, -1).astype(np.int32),
        "rows_clean": rows[: shown.pictures].astype(np.int32),
        "x_clean": originals[: shown.pictures],
    }


def pictures(shown: Shown) -> NDArray[np.uint8]:
    """(N, C, H, W): real digits where the shape is theirs, else soft blobs, a colour for each class."""
    channels, height, width = shown.shape
    if shown.shape == (1, 8, 8):
        from sklearn.datasets import load_digits

        digits = load_digits()
        chosen = [np.flatnonzero(digits.target == row % 10)[row // 10] for row in range(shown.images)]
        return np.rint(digits.images[chosen] * (255 / 16)).astype(np.uint8)[:, None]
    random = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    made = []
    for row in range(shown.images):
        at_y, at_x, wide = random.uniform(0.3, 0.7), random.uniform(0.3, 0.7), random.uniform(0.1, 0.25)
        blob = np.exp(-((x - at_x) ** 2 + (y - at_y) ** 2) / wide**2)
        hue = 2 * np.pi * ((row % shown.classes) / shown.classes + np.arange(channels) / 3)
        colour, ground = 140 + 100 * np.cos(hue), 110 - 60 * np.cos(hue + 1)
        noise = random.normal(0, 6, (channels, height, width))
        made.append(ground[:, None, None] * (0.6 + 0.4 * y) * (1 - blob) + colour[:, None, None] * blob + noise)
    return np.clip(np.rint(made), 0, 255).astype(np.uint8)


def attacked(originals: NDArray[np.uint8], eps: float) -> NDArray[np.uint8]:
    """Each pixel as far away as whole 255ths within `eps` allow, at random up or down."""
    size = max(1, int(255 * eps + 1e-6))
    signs = np.random.default_rng(1).choice([-1, 1], originals.shape)
    return np.clip(originals.astype(np.int16) + size * signs, 0, 255).astype(np.uint8)
