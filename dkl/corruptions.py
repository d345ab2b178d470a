"""Judging a model under common corruptions: clean accuracy, then accuracy per corruption and severity.

A pass is all test images under one corruption at one severity. A pass is the unit of resuming: it is kept in the
work directory once it is done.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError
from torch import Tensor

from dkl.batches import as_pixels
from dkl.corrupted import Corrupted, Images, corrupted_images
from dkl.datasets import Arrays, load
from dkl.events import CorruptionAccuracies, CorruptionDone, CorruptionsResult, Finished, Progress
from dkl.files import replacing
from dkl.fit import require_fit
from dkl.intervals import wilson_interval
from dkl.preflight import inspect
from dkl.protocols import Corruption, EvaluateCorruptions, Severity
from dkl.recipes import fingerprint
from dkl.summary import say_once
from dkl.verify import classify
from dkl.weights import LoadedModel

INSPECTED = 32
"""Images that the model is looked at with first."""

Flags = NDArray[np.bool_]
"""(N,): per image, whether it was classified correctly, with finite logits."""


def evaluate_corruptions(
    recipe: EvaluateCorruptions, loaded: LoadedModel, workdir: Path, *, device: str, data_dir: Path
) -> Iterator[Progress | CorruptionDone | Finished]:
    """Judge `loaded` as `recipe` says; the last event is Finished.

    Passes that `workdir` holds already are said again and not computed again. The model is moved to `device`, and
    its parameters lose their gradients. Raises ValueError where recipe, model, data and work directory do not fit,
    DatasetError where corrupted images are missing.
    """
    arrays = load(recipe.dataset, "test", data_dir)
    images = _count(recipe, len(arrays.labels))
    require_fit(recipe.dataset, loaded, arrays)
    corrupted = corrupted_images(recipe, arrays, data_dir)
    loaded.model.to(device).eval().requires_grad_(False)
    yield from _Task(recipe, loaded, arrays, images, corrupted, torch.device(device)).run(
        _Shelf(workdir, recipe=fingerprint(recipe), checkpoint=loaded.sha256)
    )


def _count(recipe: EvaluateCorruptions, there: int) -> int:
    wanted = there if recipe.images is None else recipe.images
    if wanted > there:
        raise ValueError(f"{recipe.dataset} has {there} test images, found images={wanted}; ask for fewer")
    return wanted


# --- the passes -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pass:
    """All images under one corruption at one severity."""

    corruption: Corruption | Literal["clean"]
    severity: Severity | Literal[0]
    """0 for the clean pass."""


_CLEAN = _Pass("clean", 0)


@dataclass(frozen=True)
class _Task:
    """One model under all corruptions that were asked for."""

    recipe: EvaluateCorruptions
    loaded: LoadedModel
    arrays: Arrays
    """The whole clean test split."""
    images: int
    """How many of its first images count."""
    corrupted: Corrupted
    device: torch.device

    def run(self, shelf: "_Shelf") -> Iterator[Progress | CorruptionDone | Finished]:
        passes = [
            _CLEAN,
            *(_Pass(corruption, s) for corruption in self.recipe.corruptions for s in self.recipe.severities),
        ]
        done: dict[_Pass, tuple[CorruptionDone, Flags]] = {}
        for each in passes:
            if found := shelf.read(each):
                done[each] = found
                yield found[0]
        warnings = self._inspect()
        for each in [each for each in passes if each not in done]:
            done[each] = yield from self._judge(each, behind=len(done), passes=len(passes))
            shelf.write(each, *done[each])
            yield done[each][0]
        yield Finished(result=self._result(done, warnings))

    def _inspect(self) -> tuple[str, ...]:
        """What is wrong with the model as a function of images, before time is spent on it."""
        where = range(min(INSPECTED, self.images))
        x, y = self._batch(_CLEAN, where)
        return inspect(self.loaded.model, x, y, classes=self.loaded.classes, needs_gradient=False)

    def _judge(
        self, which: _Pass, *, behind: int, passes: int
    ) -> Generator[Progress, None, tuple[CorruptionDone, Flags]]:
        right, not_finite, started = np.zeros(self.images, np.bool_), 0, perf_counter()
        for first in range(0, self.images, self.recipe.batch_size):
            where = range(first, min(first + self.recipe.batch_size, self.images))
            correct, finite = self._classify(which, where)
            right[where.start : where.stop] = (correct & finite).cpu().numpy()
            not_finite += int((~finite).sum())
            yield self._progress(which, behind * self.images + where.stop, passes, where.stop, started)
        event = CorruptionDone(
            corruption=which.corruption,
            severity=which.severity,
            images=self.images,
            accuracy=float(right.mean()),
            not_finite=not_finite,
            seconds=perf_counter() - started,
        )
        return event, right

    def _classify(self, which: _Pass, where: range) -> tuple[Tensor, Tensor]:
        """Whether each answer is right, and whether it is finite. A random model answers the same way again."""
        x, y = self._batch(which, where)
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(int(np.random.SeedSequence((self.recipe.seed, where.start)).generate_state(1)[0]))
            return classify(self.loaded.model, x, y)

    def _batch(self, which: _Pass, where: range) -> tuple[Tensor, Tensor]:
        """x in [0, 1], shape (B, C, H, W), and y (B,), on the device."""
        images = torch.from_numpy(self._read(which, where)).to(self.device)
        labels = torch.from_numpy(self.arrays.labels[where.start : where.stop]).to(self.device)
        return as_pixels(images.permute(0, 3, 1, 2).contiguous()), labels

    def _read(self, which: _Pass, where: range) -> Images:
        if which.corruption == "clean" or which.severity == 0:
            return self.arrays.images[where.start : where.stop]
        return self.corrupted.read(which.corruption, which.severity, where)

    def _progress(self, which: _Pass, done: int, passes: int, images: int, started: float) -> Progress:
        rate = images / (perf_counter() - started)
        total = passes * self.images
        severity = f", severity {which.severity}" if which.severity else ""
        phase = f"{which.corruption.replace('_', ' ')}{severity}"
        return Progress(phase=phase, done=done, total=total, rate=rate, eta_seconds=(total - done) / rate)

    def _result(self, done: dict[_Pass, tuple[CorruptionDone, Flags]], look: Sequence[str]) -> CorruptionsResult:
        severities = self.recipe.severities
        rows = [[done[_Pass(name, s)][0].accuracy for s in severities] for name in self.recipe.corruptions]
        table = tuple(
            CorruptionAccuracies(corruption=name, accuracies=tuple(row), mean=fmean(row))
            for name, row in zip(self.recipe.corruptions, rows, strict=True)
        )
        right = np.stack([flags for which, (_, flags) in done.items() if which != _CLEAN])
        clean, events = done[_CLEAN][1], [event for event, _ in done.values()]
        return CorruptionsResult(
            images=self.images,
            clean_accuracy=float(clean.mean()),
            clean_interval=wilson_interval(int(clean.sum()), self.images),
            corruption_accuracy=float(right.mean()),
            corruption_interval=clustered_interval(right),
            severities=severities,
            table=table,
            source=self.corrupted.title,
            notes=(*self.loaded.notes, *self.corrupted.notes),
            warnings=say_once([*look, *map(_not_finite, filter(lambda event: event.not_finite, events))]),
            checkpoint_sha256=self.loaded.sha256,
            architecture=self.loaded.architecture,
            preprocessing=self.loaded.preprocessing,
            seconds=sum(event.seconds for event in events),
        )


def _not_finite(event: CorruptionDone) -> str:
    where = f"under {event.corruption}" if event.severity else "without corruption"
    return f"{event.not_finite} images {where} have logits that are NaN or infinite, and count as wrong"


def clustered_interval(right: Flags) -> tuple[float, float]:
    """The 95 % interval of the mean of `right` (passes, N), for the N images as a sample of all images.

    An image's passes stand or fall together, so they are one observation: the Wilson score interval is taken at
    the effective number of trials, which has the variance that the images' own means show:

        n = p (1 - p) / (s^2 / N),     s^2 = the variance of the N means,     N <= n <= N * passes

    The corruptions themselves are not a sample: the interval says nothing about other corruptions.

    Source: the effective sample size of Korn and Graubard, Survey Methodology 24 (1998) 193, in Wilson's interval.
    """
    passes, images = right.shape
    p, means = float(right.mean()), right.mean(axis=0)
    variance = float(means.var(ddof=1)) / images if images > 1 else 0.0
    trials = min(max(p * (1 - p) / variance, images), images * passes) if variance else images
    return wilson_interval(p * trials, trials)


# --- passes that are done ---------------------------------------------------------------------------------


class _StoredPass(BaseModel):
    """A file in the work directory: what a pass found, and of which question."""

    recipe: str
    checkpoint: str
    event: CorruptionDone
    right: str
    """One character per image: "1" right, "0" wrong."""


@dataclass(frozen=True)
class _Shelf:
    """The finished passes of one question in a work directory."""

    workdir: Path
    recipe: str
    """Its fingerprint."""
    checkpoint: str
    """Its sha256."""

    def read(self, which: _Pass) -> tuple[CorruptionDone, Flags] | None:
        """The finished pass, None if there is none; ValueError if it answers another question."""
        path = self._path(which)
        if not path.exists():
            return None
        try:
            stored = _StoredPass.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise ValueError(f"{path} is damaged; delete it to judge its images again") from error
        if (stored.recipe, stored.checkpoint) != (self.recipe, self.checkpoint):
            raise ValueError(
                f"{path} holds answers to another recipe or of another checkpoint; use another work directory or "
                "empty this one"
            )
        return stored.event, np.array([flag == "1" for flag in stored.right])

    def write(self, which: _Pass, event: CorruptionDone, right: Flags) -> None:
        flags = "".join("1" if flag else "0" for flag in right)
        stored = _StoredPass(recipe=self.recipe, checkpoint=self.checkpoint, event=event, right=flags)
        with replacing(self._path(which)) as file:
            file.write(stored.model_dump_json().encode())

    def _path(self, which: _Pass) -> Path:
        return self.workdir / f"corruption-{which.corruption}-{which.severity}.json"
