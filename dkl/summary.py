"""From what is known about each image to the numbers of a table. No torch here."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray

from dkl.events import BatchDone, EvaluateResult, Phase, Provenance, RobustAt, StageResult
from dkl.flags import Flags, pack
from dkl.intervals import wilson_interval
from dkl.protocols import Protocol, show_protocol
from dkl.tally import Tally

SQUARE_SURPRISE = 0.002
"""Fraction of images; AutoAttack's own threshold for calling Square's success suspicious."""


@dataclass
class Ran:
    """A stage that ran, and the batches it consisted of."""

    name: str
    phase: Phase
    eps: float
    attacked: int
    events: list[BatchDone] = field(default_factory=list)


def summarise(
    recipe: Protocol,
    tally: Tally,
    ran: Sequence[Ran],
    *,
    classes: int,
    checkpoint_sha256: str,
    architecture: str,
    preprocessing: str,
    engine: str,
    precision: str,
    notes: Iterable[str],
    warnings: Iterable[str],
    stopped_early: bool,
    evidence_sha256: str,
    data_sha256: str,
    provenance: Provenance,
) -> EvaluateResult:
    """The result of an evaluation; all its numbers come from the flags of the images."""
    stages = _stages(tally, ran)
    radii = recipe.radii()
    robust = tally.robust(radii.index(recipe.threat.eps))
    curve = [(eps, tally.robust(radius)) for radius, eps in enumerate(radii) if radius <= tally.radius]
    events = [event for stage in ran for event in stage.events]
    said = chain(warnings, *(event.warnings for event in events), _square_surprise(stages))
    return EvaluateResult(
        images=len(robust),
        clean_accuracy=float(tally.clean_correct.mean()),
        clean_interval=_interval(tally.clean_correct),
        robust_accuracy=float(robust.mean()),
        robust_interval=_interval(robust),
        curve=tuple(
            RobustAt(eps=eps, robust_accuracy=float(flags.mean()), robust_interval=_interval(flags))
            for eps, flags in curve
        ),
        stages=stages,
        class_clean_accuracy=_per_class(tally.clean_correct, tally.labels, classes),
        class_robust_accuracy=_per_class(robust, tally.labels, classes),
        protocol=show_protocol(recipe.suite, recipe.policy),
        engine=engine,
        precision=precision,
        notes=tuple(notes),
        could_still_break=tally.could_still_break.get(recipe.threat.eps),
        stopped_early=stopped_early,
        rejected=sum(event.rejected for event in events),
        warnings=say_once(said),
        forwards=sum(event.forwards for event in events),
        backwards=sum(event.backwards for event in events),
        checkpoint_sha256=checkpoint_sha256,
        architecture=architecture,
        preprocessing=preprocessing,
        evidence_sha256=evidence_sha256,
        flags=Flags(data_sha256=data_sha256, clean=pack(tally.clean_correct), robust=pack(robust)),
        provenance=provenance,
        seconds=sum(event.seconds for event in events),
    )


def say_once(sentences: Iterable[str]) -> tuple[str, ...]:
    """`sentences` in order, without those that differ from an earlier one in their numbers only."""
    first: dict[str, str] = {}
    for sentence in sentences:
        first.setdefault(re.sub(r"\d+(\.\d+)?", "#", sentence), sentence)
    return tuple(first.values())


def _stages(tally: Tally, ran: Sequence[Ran]) -> tuple[StageResult, ...]:
    """What each stage left of all images; those that an early stop kept from running are not among them."""
    count, standing, stages = len(tally.images), len(tally.images), []
    for stage in ran:
        standing -= sum(event.standing.count("0") for event in stage.events)
        stages.append(
            StageResult(
                name=stage.name,
                phase=stage.phase,
                eps=stage.eps,
                attacked=stage.attacked,
                accuracy=standing / count,
                forwards=sum(event.forwards for event in stage.events),
                backwards=sum(event.backwards for event in stage.events),
                seconds=sum(event.seconds for event in stage.events),
            )
        )
    return tuple(stages)


def _interval(flags: NDArray[np.bool_]) -> tuple[float, float]:
    return wilson_interval(int(flags.sum()), len(flags))


def _per_class(flags: NDArray[np.bool_], labels: NDArray[np.int64], classes: int) -> tuple[float | None, ...]:
    return tuple(float(flags[labels == k].mean()) if (labels == k).any() else None for k in range(classes))


def _square_surprise(stages: Sequence[StageResult]) -> list[str]:
    """AutoAttack's check of Square: what it breaks where attacks with gradients failed."""
    drop = sum(before.accuracy - after.accuracy for before, after in pairwise(stages) if after.name == "square")
    others = {stage.name for stage in stages} - {"clean", "square"}
    if not others or drop <= SQUARE_SURPRISE + 1e-9:  # fractions subtracted
        return []
    return [
        f"square, which uses no gradients, broke {drop:.2%} of the images where the attacks with gradients had "
        "failed; these may mislead: try more queries and restarts, or an adaptive attack"
    ]
