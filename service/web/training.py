"""What the page of a training shows. What a job of an older service did not say is None, or left out."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

from dkl.documents import show_pixels
from service.tables import Job, JobEvent

_EPOCH: dict[str, Any] = {
    "terms": {},
    "adversarial_accuracy": None,
    "validation_accuracy": None,
    "validation_robust_accuracy": None,
    "eps": None,
    "images_per_second": None,
}
_RESULT: dict[str, Any] = {
    "selected_epoch": None,
    "validation_accuracy": None,
    "validation_robust_accuracy": None,
    "notes": [],
    "provenance": None,
}


class Training(NamedTuple):
    epochs: list[dict[str, Any]]
    """The events, newest first."""
    terms: list[str]
    """Of the loss, if there is more than one."""
    adversarial: bool
    held_out: bool
    """Whether training images are held out and judged."""
    images_per_second: float | None
    """Mean over the epochs."""
    in_levels: bool
    """Whether eps is written in 255ths."""
    result: dict[str, Any] | None


def training_of(job: Job, events: Sequence[JobEvent]) -> Training:
    epochs = [{**_EPOCH, **event.payload} for event in reversed(events) if event.kind == "epoch"]
    terms = list(dict.fromkeys(name for epoch in reversed(epochs) for name in epoch["terms"]))
    rates = [epoch["images_per_second"] for epoch in epochs if epoch["images_per_second"] is not None]
    return Training(
        epochs=epochs,
        terms=terms if len(terms) > 1 else [],
        adversarial=job.recipe.get("threat") is not None,
        held_out=bool(job.recipe.get("validation")),
        images_per_second=fmean(rates) if rates else None,
        in_levels=job.eps is not None and show_pixels(job.eps).endswith("/255"),
        result={**_RESULT, **job.result} if job.result else None,
    )
