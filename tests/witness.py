"""Evidence made by hand for tests: no model has seen these images."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from dkl.evidence import About, Evidence, pictured
from dkl.tally import Finding

SHAPE = (1, 2, 3)


def about(
    norm: str = "Linf",
    radii: Sequence[float] = (0.1, 0.2),
    *,
    dataset: str = "npz:tiny",
    checkpoint_sha256: str = "0" * 64,
    data_sha256: str = "d" * 64,
) -> About:
    recipe = {"dataset": dataset, "threat": {"norm": norm, "eps": radii[-1]}, "curve": list(radii[:-1]), "seed": 3}
    canonical = json.dumps(recipe, sort_keys=True, separators=(",", ":")).encode()
    return About(
        recipe=recipe,
        fingerprint=hashlib.sha256(canonical).hexdigest(),
        checkpoint_sha256=checkpoint_sha256,
        data_sha256=data_sha256,
        stages=[
            {"name": "clean", "phase": "clean", "eps": 0.0},
            *({"name": "apgd-ce", "phase": "suite", "eps": eps} for eps in radii),
        ],
        engine="hand 1.0",
        versions={"python": "3"},
    )


def evidence(
    *,
    clean: str = "11110",
    broken_at: Sequence[int] = (-1, 1, 0, 0, -1),
    images: Sequence[int] = (0, 2, 3, 4, 7),
    in_8_bits: Sequence[int] = (1, 3),
    radii: Sequence[float] = (0.1, 0.2),
    **of_about: Any,
) -> Evidence:
    """Five images, three of them broken unless told otherwise; `in_8_bits` are rows."""
    at, count = np.array(broken_at, np.int8), len(images)
    broken = np.flatnonzero(at >= 0)
    rows8 = np.array([row for row in broken if row in in_8_bits], np.int32)
    rows32 = np.array([row for row in broken if row not in in_8_bits], np.int32)
    random = np.random.default_rng(0)
    labels = np.arange(count, dtype=np.int64) % 3
    clean_correct = np.array([flag == "1" for flag in clean])
    made_about = about(radii=radii, **of_about)
    rows_clean = pictured(made_about.data_sha256, count, SHAPE)

    def where_broken(value: int, dtype: Any) -> np.ndarray:
        return np.where(at >= 0, value, -1).astype(dtype)

    return Evidence(
        about=made_about,
        images=np.array(images, np.int64),
        labels=labels,
        clean_correct=clean_correct,
        radii=np.array(radii, np.float64),
        broken_at=at,
        stage=np.where(at >= 0, at + 1, -1).astype(np.int16),
        restart=where_broken(0, np.int16),
        target=where_broken(-1, np.int16),
        step=where_broken(17, np.int32),
        margin=np.linspace(-1, 1, count, dtype=np.float32),
        rows8=rows8,
        x8=random.integers(0, 256, (len(rows8), *SHAPE), np.uint8),
        rows32=rows32,
        x32=random.random((len(rows32), *SHAPE), np.float32),
        predicted=np.where(clean_correct, labels, labels + 1).astype(np.int32),
        predicted_adv=np.where(at >= 0, labels + 2, -1).astype(np.int32),
        rows_clean=rows_clean,
        x_clean=random.integers(0, 256, (len(rows_clean), *SHAPE), np.uint8),
    )


def finding(
    rows: Sequence[int],
    broken: Sequence[int],
    *,
    in_8_bits: Sequence[int] = (),
    margin: float = 1.0,
    flat: Sequence[int] = (),
    value: int = 0,
    predicted: Sequence[int] | None = None,
) -> Finding:
    """On `rows`; of these, `broken` fell, with adversarial images of grey level `value`, predicted as class 3."""
    fell = np.isin(rows, broken)
    small = np.isin(rows, in_8_bits)
    assert not (small & ~fell).any()
    x8 = np.full((int(small.sum()), *SHAPE), value, np.uint8)
    x32 = np.full((int((fell & ~small).sum()), *SHAPE), value / 255 + 0.001, np.float32)
    return Finding(
        rows=np.array(rows, np.intp),
        broken=fell,
        restart=np.array(rows, np.int16),
        target=np.full(len(rows), -1, np.int16),
        step=np.array(rows, np.int32) + 10 * value,
        margin=np.full(len(rows), margin, np.float32),
        flat=np.isin(rows, flat),
        x8=x8,
        x32=x32,
        in_8_bits=small,
        predicted=np.where(fell, 3, -1).astype(np.int32) if predicted is None else np.array(predicted, np.int32),
    )
