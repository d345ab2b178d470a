"""What the page of an evaluation says, while it runs and when it is done. Numbers are fractions of the images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple

from dkl.datasets import known_class_names
from dkl.documents import show_pixels
from dkl.intervals import wilson_interval
from service.measured import show_suite
from service.tables import Job, JobEvent
from service.web.charts import Chart, Series, line_chart

Interval = tuple[float, float]

POLICIES = {
    "exact": "The whole suite in float32, on every image that still stands.",
    "fast": "The whole suite as a search in 16 bits where the hardware has them, then again in float32 on the "
    "survivors that came nearest to falling.",
    "audited": "A cheap search; then the whole suite in float32 on the survivors that came nearest to falling and "
    "on a random sample of the others, and on all of them if it finds anything there.",
    "screen": "A cheap search alone: an estimate, to watch training or to drop hopeless models. "
    "It is not AutoAttack.",
}
PHASES = {"recheck": "float32 recheck", "screen": "cheap search"}
"""Where the word on the page is not the event's own."""


class Step(NamedTuple):
    """What one stage did. Counts are None where an older service did not keep them."""

    name: str
    phase: str
    eps: float
    attacked: int | None
    broken: int
    before: float
    after: float
    """Fraction of all images that stand after it."""
    forwards: int | None
    backwards: int | None
    seconds: float
    batch: int
    batches: int
    """So many of its batches are done; equal once it is over."""


class Point(NamedTuple):
    eps: float
    accuracy: float
    interval: Interval


@dataclass(frozen=True)
class Verdict:
    """An evaluation as its page shows it."""

    protocol: str
    norm: str
    policy: str
    """The policy in a sentence."""
    screen: bool
    images: int | None
    """All images of the evaluation, or those that the clean pass has seen so far."""
    clean: Point | None
    robust: Point | None
    """At threat.eps; while it runs, what stands so far."""
    steps: Sequence[Step]
    points: Sequence[Point]
    """The curve, from the clean accuracy at 0 on; empty for one radius."""
    classes: Sequence[tuple[str, float | None, float | None]]
    """Name, clean and robust accuracy; None for a class without test images."""
    cautions: Sequence[str]
    """What the robust accuracy does not say."""
    notes: Sequence[str]
    warnings: Sequence[str]

    @property
    def by_radius(self) -> list[tuple[float, list[Step]]]:
        """The steps, the clean pass under radius 0."""
        return [(eps, list(steps)) for eps, steps in groupby(self.steps, key=lambda step: step.eps)]

    @cached_property
    def chart(self) -> Chart | None:
        """The curve as a picture; None for one radius."""
        robust = Series(
            "Robust accuracy",
            [(point.eps, point.accuracy) for point in self.points],
            band=[(point.eps, *point.interval) for point in self.points],
        )
        return line_chart(
            f"Robust accuracy over the {self.norm} radius",
            [robust],
            x_label=f"{self.norm} radius",
            y_label="robust accuracy",
            percent=True,
            x_format=lambda eps: show_pixels(eps) if eps else "0",
        )


def verdict_of(job: Job, events: Sequence[JobEvent]) -> Verdict:
    """What is known about the evaluation `job`: its result, or what its batches say before the end."""
    said = [event.payload for event in events if event.kind == "batch"]
    return _final(job, job.result) if job.result else _so_far(job, said)


# --- when it is done --------------------------------------------------------------------------------------


def _final(job: Job, result: Mapping[str, Any]) -> Verdict:
    images = result["images"]
    clean = Point(0.0, result["clean_accuracy"], result.get("clean_interval") or _interval(result, "clean"))
    robust = Point(job.eps or 0.0, result["robust_accuracy"], tuple(result["robust_interval"]))
    curve = [Point(p["eps"], p["robust_accuracy"], tuple(p["robust_interval"])) for p in result.get("curve", ())]
    return Verdict(
        **_asked(job),
        images=images,
        clean=clean,
        robust=robust,
        steps=_steps(job, result["stages"], images),
        points=[clean, *curve] if len(curve) > 1 else [],
        classes=_classes(job, result),
        cautions=_cautions(job, result),
        notes=result.get("notes", ()),
        warnings=result["warnings"],
    )


def _asked(job: Job) -> dict[str, Any]:
    policy = job.recipe.get("policy", "exact")
    return {
        "protocol": show_suite(job),
        "norm": job.norm or "",
        "policy": POLICIES[policy],
        "screen": policy == "screen",
    }


def _interval(result: Mapping[str, Any], which: str) -> Interval:
    return wilson_interval(round(result[f"{which}_accuracy"] * result["images"]), result["images"])


def _steps(job: Job, stages: Sequence[Mapping[str, Any]], images: int) -> list[Step]:
    steps, before = [], 1.0
    for number, stage in enumerate(stages):
        after = stage["accuracy"]
        steps.append(
            Step(
                name=stage["name"],
                phase=_phase(stage.get("phase", "suite" if number else "clean")),
                eps=stage.get("eps", (job.eps or 0.0) if number else 0.0),
                attacked=stage.get("attacked"),
                broken=round((before - after) * images),
                before=before,
                after=after,
                forwards=stage.get("forwards"),
                backwards=stage.get("backwards"),
                seconds=stage["seconds"],
                batch=1,
                batches=1,
            )
        )
        before = after
    return steps


def _phase(phase: str) -> str:
    return PHASES.get(phase, phase)


def _classes(job: Job, result: Mapping[str, Any]) -> list[tuple[str, float | None, float | None]]:
    robust = result["class_robust_accuracy"]
    clean = result.get("class_clean_accuracy") or [None] * len(robust)
    return list(zip(class_names(job.dataset, len(robust)), clean, robust, strict=False))


def class_names(dataset: str, classes: int) -> list[str]:
    """What the classes are called, or their numbers where nobody has said it here."""
    names = known_class_names(dataset)
    return [names[k].replace("_", " ") if k < len(names) else str(k) for k in range(classes)]


def _cautions(job: Job, result: Mapping[str, Any]) -> list[str]:
    cautions = []
    if job.recipe.get("policy") == "screen":
        cautions.append(
            "An estimate, not AutoAttack: the whole suite may break more images, and this result is not ranked."
        )
    if result.get("stopped_early"):
        cautions.append(
            f"Stopped early, as soon as it was certain that the robust accuracy is below "
            f"{100 * job.recipe['stop_below']:.2f} %: the one above is an upper bound, and is not ranked."
        )
    if (more := result.get("could_still_break")) is not None:
        cautions.append(
            f"With 95 % confidence the whole suite would break at most {round(more * result['images']):,} more of "
            f"{result['images']:,} images."
        )
    return cautions


# --- while it runs ----------------------------------------------------------------------------------------


def _so_far(job: Job, said: Sequence[Mapping[str, Any]]) -> Verdict:
    images = sum(len(batch["images"]) for batch in said if batch["stage"] == 0)
    steps = _steps_so_far(said, images)
    clean_is_done = bool(steps) and steps[0].batch == steps[0].batches
    radii = {step.eps for step in steps[1:]}
    return Verdict(
        **_asked(job),
        images=images or None,
        clean=_standing_after(steps[:1], 0.0, images) if clean_is_done else None,
        robust=_standing_after(steps, min(max(radii), job.eps or 0.0), images) if radii else None,
        steps=steps,
        points=[],
        classes=[],
        cautions=[],
        notes=[],
        warnings=list(dict.fromkeys(warning for batch in said for warning in batch["warnings"])),
    )


def _steps_so_far(said: Sequence[Mapping[str, Any]], images: int) -> list[Step]:
    steps, standing = [], images
    for _, group in groupby(said, key=lambda batch: batch["stage"]):
        batches = list(group)
        first, broken = batches[0], sum(batch["standing"].count("0") for batch in batches)
        steps.append(
            Step(
                name=first["name"],
                phase=_phase(first["phase"]),
                eps=first["eps"],
                attacked=sum(len(batch["images"]) for batch in batches),
                broken=broken,
                before=standing / images,
                after=(standing - broken) / images,
                forwards=sum(batch["forwards"] for batch in batches),
                backwards=sum(batch["backwards"] for batch in batches),
                seconds=sum(batch["seconds"] for batch in batches),
                batch=len(batches),
                batches=first["batches"],
            )
        )
        standing -= broken
    return steps


def _standing_after(steps: Sequence[Step], eps: float, images: int) -> Point:
    standing = images - sum(step.broken for step in steps if step.eps <= eps)
    return Point(eps, standing / images, wilson_interval(standing, images))
