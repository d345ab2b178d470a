"""Judging a model under common corruptions: clean accuracy, then accuracy per corruption and severity.

A pass is all test images under one corruption at one severity. A pass is the unit of resuming: it is kept in the
work directory once it is done.
"""

import hashlib
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from dkl.batches import as_pixels
from dkl.corrupted import Corrupted, Images, corrupted_images
from dkl.datasets import Arrays, load
from dkl.events import Adjusted, CorruptionAccuracies, CorruptionDone, CorruptionsResult, Finished, Progress
from dkl.fit import require_fit
from dkl.intervals import wilson_interval
from dkl.memory import Room, required
from dkl.passes import Flags, Pass, Passed, PassShelf
from dkl.preflight import inspect
from dkl.protocols import EvaluateCorruptions
from dkl.provenance import provenance
from dkl.recipes import fingerprint
from dkl.summary import say_once
from dkl.verify import classify
from dkl.weights import LoadedModel

INSPECTED = 32
"""Images that the model is looked at with first."""


def evaluate_corruptions(
    recipe: EvaluateCorruptions, loaded: LoadedModel, workdir: Path, *, device: str, data_dir: Path
) -> Iterator[Progress | Adjusted | CorruptionDone | Finished]:
    """Judge `loaded` as `recipe` says; the last event is Finished.

    Passes that `workdir` holds already are said again and not computed again. The model is moved to `device`, and
    its parameters lose their gradients. Raises ValueError where recipe, model, data and work directory do not fit,
    DatasetError where corrupted images are missing, MemoryError where the memory does not suffice for one image.
    """
    arrays = load(recipe.dataset, "test", data_dir)
    _count(recipe, len(arrays.labels))
    require_fit(recipe.dataset, loaded, arrays)
    corrupted = corrupted_images(recipe, arrays, data_dir)
    task = _Task(recipe, loaded, arrays, corrupted, device)
    yield from task.run(PassShelf(workdir, recipe=fingerprint(recipe), checkpoint=loaded.sha256))


def _count(recipe: EvaluateCorruptions, there: int) -> int:
    wanted = there if recipe.images is None else recipe.images
    if wanted > there:
        raise ValueError(f"{recipe.dataset} has {there} test images, found images={wanted}; ask for fewer")
    return wanted


# --- the passes -------------------------------------------------------------------------------------------

_CLEAN = Pass("clean", 0)


class _Task:
    """One model under all corruptions that were asked for."""

    def __init__(
        self, recipe: EvaluateCorruptions, loaded: LoadedModel, arrays: Arrays, corrupted: Corrupted, device: str
    ) -> None:
        """`arrays` is the whole clean test split."""
        self.recipe, self.loaded, self.arrays, self.corrupted = recipe, loaded, arrays, corrupted
        self.images = _count(recipe, len(arrays.labels))
        self.device = torch.device(device)
        self.room = Room(recipe.batch_size)
        with required("the model"):
            self.model = loaded.model.to(device).eval().requires_grad_(False)

    def run(self, shelf: PassShelf) -> Iterator[Progress | Adjusted | CorruptionDone | Finished]:
        passes = [
            _CLEAN,
            *(Pass(corruption, s) for corruption in self.recipe.corruptions for s in self.recipe.severities),
        ]
        done: dict[Pass, Passed] = {}
        for each in passes:
            if found := shelf.read(each):
                done[each] = found
                yield from found.adjusted
                yield found.event
        warnings = self._inspect()
        for each in [each for each in passes if each not in done]:
            done[each] = found = yield from self._judge(each, behind=len(done), passes=len(passes))
            shelf.write(each, found)
            yield from found.adjusted
            yield found.event
        yield Finished(result=self._result(done, warnings))

    def _inspect(self) -> tuple[str, ...]:
        """What is wrong with the model as a function of images, before time is spent on it."""

        def look(count: int) -> tuple[str, ...]:
            x, y = self._on_device(self._read(_CLEAN, range(count)), range(count))
            return inspect(self.model, x, y, classes=self.loaded.classes, needs_gradient=False)

        return self.room.fitting(min(INSPECTED, self.images), "the first look at the model", look)

    def _judge(self, which: Pass, *, behind: int, passes: int) -> Generator[Progress, None, Passed]:
        right, not_finite, started = np.zeros(self.images, np.bool_), 0, perf_counter()
        seen, done = hashlib.sha256(), 0
        while done < self.images:
            images = self._read(which, range(done, min(done + self.room.images, self.images)))
            judge = partial(self._classify, images, done)
            correct, finite = self.room.fitting(len(images), which.title, judge)
            right[done : done + len(correct)] = (correct & finite).cpu().numpy()
            not_finite += int((~finite).sum())
            seen.update(np.ascontiguousarray(images[: len(correct)]).data)
            done += len(correct)
            yield self._progress(which, behind * self.images + done, passes, done, started)
        event = CorruptionDone(
            corruption=which.corruption,
            severity=which.severity,
            images=self.images,
            accuracy=float(right.mean()),
            not_finite=not_finite,
            seconds=perf_counter() - started,
        )
        return Passed(event, right, seen.hexdigest(), self.room.take_adjusted())

    def _classify(self, images: Images, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Whether each answer on the first `count` of `images` is right, and whether it is finite.

        A random model answers the same way again.
        """
        x, y = self._on_device(images[:count], range(first, first + count))
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(int(np.random.SeedSequence((self.recipe.seed, first)).generate_state(1)[0]))
            return classify(self.model, x, y)

    def _on_device(self, images: Images, where: range) -> tuple[Tensor, Tensor]:
        """x in [0, 1], shape (B, C, H, W), and y (B,)."""
        x = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2).contiguous()
        labels = torch.from_numpy(self.arrays.labels[where.start : where.stop]).to(self.device)
        return as_pixels(x), labels

    def _read(self, which: Pass, where: range) -> Images:
        if which.corruption == "clean" or which.severity == 0:
            return self.arrays.images[where.start : where.stop]
        return self.corrupted.read(which.corruption, which.severity, where)

    def _progress(self, which: Pass, done: int, passes: int, images: int, started: float) -> Progress:
        rate = images / (perf_counter() - started)
        total = passes * self.images
        return Progress(phase=which.title, done=done, total=total, rate=rate, eta_seconds=(total - done) / rate)

    def _result(self, done: dict[Pass, Passed], look: Sequence[str]) -> CorruptionsResult:
        severities = self.recipe.severities
        rows = [[done[Pass(name, s)].event.accuracy for s in severities] for name in self.recipe.corruptions]
        table = tuple(
            CorruptionAccuracies(corruption=name, accuracies=tuple(row), mean=fmean(row))
            for name, row in zip(self.recipe.corruptions, rows, strict=True)
        )
        right = np.stack([passed.right for which, passed in done.items() if which != _CLEAN])
        clean, events = done[_CLEAN].right, [passed.event for passed in done.values()]
        adjusted = {each.key: each.sentence for passed in done.values() for each in passed.adjusted}
        return CorruptionsResult(
            images=self.images,
            clean_accuracy=float(clean.mean()),
            clean_interval=wilson_interval(int(clean.sum()), self.images),
            corruption_accuracy=float(right.mean()),
            corruption_interval=clustered_interval(right),
            severities=severities,
            table=table,
            source=self.corrupted.title,
            notes=(*self.loaded.notes, *self.corrupted.notes, *adjusted.values()),
            warnings=say_once([*look, *map(_not_finite, filter(lambda event: event.not_finite, events))]),
            checkpoint_sha256=self.loaded.sha256,
            architecture=self.loaded.architecture,
            preprocessing=self.loaded.preprocessing,
            provenance=provenance(
                self.recipe,
                str(self.device),
                dataset_sha256=self._data_sha256(done),
                checkpoint_sha256=self.loaded.sha256,
                packages=self.loaded.packages,
            ),
            seconds=sum(event.seconds for event in events),
        )

    def _data_sha256(self, done: dict[Pass, Passed]) -> str:
        """Of the labels, and of the images in every pass, in the order of the passes' names."""
        digest = hashlib.sha256(self.arrays.labels[: self.images].astype("<i8").tobytes())
        for _, passed in sorted(done.items()):
            digest.update(passed.images_sha256.encode())
        return digest.hexdigest()


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
