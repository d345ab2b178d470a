"""From one flag per image and stage to the numbers of a table. No torch here."""

import re
from collections.abc import Iterable, Sequence
from itertools import chain
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from dkl.events import ChunkDone, EvaluateResult, StageResult

SQUARE_SURPRISE = 0.002
"""Fraction of images; AutoAttack's own threshold for calling Square's success suspicious."""


def summarise(
    chunks: Sequence[ChunkDone],
    labels: NDArray[np.int64],
    *,
    classes: int,
    checkpoint_sha256: str,
    architecture: str,
    engine: str,
) -> EvaluateResult:
    """The result of an evaluation from the chunks' flags alone; `labels` (N,) are those of all its images."""
    chunks = sorted(chunks, key=lambda chunk: chunk.chunk)
    names = [stage.name for stage in chunks[0].stages]
    standing = np.stack([_flags(chunks, stage) for stage in range(len(names))])
    assert standing.shape[1] == len(labels), f"{standing.shape[1]} flags for {len(labels)} images"
    stages = tuple(
        StageResult(name=name, accuracy=float(flags.mean()), seconds=sum(c.stages[i].seconds for c in chunks))
        for i, (name, flags) in enumerate(zip(names, standing, strict=True))
    )
    robust = standing[-1]
    return EvaluateResult(
        images=len(labels),
        clean_accuracy=stages[0].accuracy,
        robust_accuracy=stages[-1].accuracy,
        robust_interval=wilson_interval(int(robust.sum()), len(robust)),
        stages=stages,
        class_robust_accuracy=tuple(_mean_or_none(robust[labels == k]) for k in range(classes)),
        rejected=sum(chunk.rejected for chunk in chunks),
        warnings=say_once(chain(*(chunk.warnings for chunk in chunks), _square_surprise(stages))),
        checkpoint_sha256=checkpoint_sha256,
        architecture=architecture,
        engine=engine,
        seconds=sum(stage.seconds for stage in stages),
    )


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a fraction; two fractions.

        (p + z^2/2n  +-  z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2/n),     p = successes / n, n = trials

    Unlike p +- z sqrt(p (1 - p) / n) it is right at p = 0 and p = 1, where undefended models are.
    Source: E. B. Wilson, JASA 22 (1927) 209.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = successes / trials
    centre = p + z**2 / (2 * trials)
    spread = z * (p * (1 - p) / trials + z**2 / (4 * trials**2)) ** 0.5
    scale = 1 + z**2 / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def say_once(sentences: Iterable[str]) -> tuple[str, ...]:
    """`sentences` in order, without those that differ from an earlier one in their numbers only."""
    first: dict[str, str] = {}
    for sentence in sentences:
        first.setdefault(re.sub(r"\d+(\.\d+)?", "#", sentence), sentence)
    return tuple(first.values())


def _flags(chunks: Sequence[ChunkDone], stage: int) -> NDArray[np.bool_]:
    return np.array([flag == "1" for chunk in chunks for flag in chunk.stages[stage].standing])


def _mean_or_none(flags: NDArray[np.bool_]) -> float | None:
    return float(flags.mean()) if len(flags) else None


def _square_surprise(stages: Sequence[StageResult]) -> list[str]:
    """AutoAttack's check of Square, which pyautoattack skips when it is given one attack at a time."""
    square = [stage.accuracy for stage in stages if stage.name == "square"]
    others = [stage.accuracy for stage in stages if stage.name != "square"]
    if not square or len(others) < 2 or min(square) >= min(others) - SQUARE_SURPRISE:
        return []
    return [
        f"square, which uses no gradients, broke {min(others) - min(square):.2%} of the images where the attacks "
        "with gradients had failed; these may mislead: try more queries and restarts, or an adaptive attack"
    ]
