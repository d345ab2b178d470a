"""What the page of a training shows. What a job of an older service did not say is None, or left out."""

from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from statistics import fmean
from typing import Any, Literal, NamedTuple

from dkl.documents import show_pixels
from service.tables import Job, JobEvent
from service.web.charts import Chart, Series, line_chart

CurveName = Literal["accuracy", "loss", "rate", "eps", "speed"]
CURVES: tuple[CurveName, ...] = ("accuracy", "loss", "rate", "eps", "speed")
_Epoch = dict[str, Any]
_EPOCH: _Epoch = {
    "terms": {},
    "adversarial_accuracy": None,
    "teacher_accuracy": None,
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
    epochs: list[_Epoch]
    """The events, newest first."""
    terms: list[str]
    """Of the loss, if there is more than one."""
    adversarial: bool
    taught: bool
    """Whether a teacher learns along."""
    held_out: bool
    """Whether training images are held out and judged."""
    limited: bool
    """Whether an epoch names the radius that no image left."""
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
        taught=any(epoch["teacher_accuracy"] is not None for epoch in epochs),
        held_out=bool(job.recipe.get("validation")),
        limited=any(epoch["eps"] is not None for epoch in epochs),
        images_per_second=fmean(rates) if rates else None,
        in_levels=job.eps is not None and show_pixels(job.eps).endswith("/255"),
        result={**_RESULT, **job.result} if job.result else None,
    )


# --- drawn on the server ----------------------------------------------------------------------------------


def training_curve(training: Training, name: CurveName) -> Chart | None:
    """One of the training's curves over its epochs; None where no epoch has a value for it."""
    match name:
        case "accuracy":
            return _over_epochs("Accuracy", "accuracy", _accuracies(training), percent=True)
        case "loss":
            terms = [_line(training, term.replace("_", " "), partial(_term, term)) for term in training.terms]
            return _over_epochs("Loss", "loss", [_line(training, "loss", itemgetter("loss")), *terms])
        case "rate":
            return _over_epochs("Learning rate", "learning rate", [_line(training, "lr", itemgetter("lr"))])
        case "eps":
            label = "eps, in 1/255" if training.in_levels else "eps"
            return _over_epochs("Radius", label, [_line(training, "eps", partial(_eps, training))])
        case "speed":
            speed = itemgetter("images_per_second")
            return _over_epochs("Speed", "images per second", [_line(training, "images/s", speed)])


def _over_epochs(title: str, y_label: str, lines: Sequence[Series], *, percent: bool = False) -> Chart | None:
    return line_chart(f"{title} by epoch", lines, x_label="epoch", y_label=y_label, percent=percent)


def _line(training: Training, label: str, of: Callable[[_Epoch], float | None], dashed: bool = False) -> Series:
    return Series(label, [(epoch["epoch"], of(epoch)) for epoch in reversed(training.epochs)], dashed)


def _accuracies(training: Training) -> list[Series]:
    """Those on held-out images first; where there are any, those on training batches are dashed."""
    held_out = any(epoch["validation_accuracy"] is not None for epoch in training.epochs)
    on = ", training" if held_out else ""
    return [
        _line(training, "clean, held out", itemgetter("validation_accuracy")),
        _line(training, "PGD, held out", itemgetter("validation_robust_accuracy")),
        _line(training, f"clean{on}", itemgetter("clean_accuracy"), dashed=held_out),
        _line(training, f"adversarial{on}", itemgetter("adversarial_accuracy"), dashed=held_out),
        _line(training, f"teacher{on}", itemgetter("teacher_accuracy"), dashed=held_out),
    ]


def _term(name: str, epoch: _Epoch) -> float | None:
    term: float | None = epoch["terms"].get(name)
    return term


def _eps(training: Training, epoch: _Epoch) -> float | None:
    unit = 255 if training.in_levels else 1
    return None if epoch["eps"] is None else unit * epoch["eps"]
