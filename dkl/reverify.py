"""Proving evidence: every claim in it that a model can confirm, asked of the model anew. No attack runs."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dkl.batches import as_pixels, on_device
from dkl.datasets import Arrays
from dkl.documents import ThreatModel, show_pixels
from dkl.events import Progress
from dkl.evidence import Evidence, EvidenceError, data_sha256
from dkl.verify import allowed, predict, verify
from dkl.weights import LoadedModel

SENTENCES = 10
"""Faults that a report spells out; all are counted."""


@dataclass(frozen=True)
class VerificationReport:
    """What became of the claims; the numbers are recomputed from those that held."""

    images: int
    adversarial: int
    """Adversarial images that were checked."""
    in_8_bits: int
    """Of these, stored in 8 bits."""
    faults: int
    sentences: tuple[str, ...]
    """The first SENTENCES faults, by image."""
    radii: tuple[float, ...]
    """In pixels, ascending."""
    clean_accuracy: float
    robust_accuracy: tuple[float, ...]
    """At each radius: the fraction of images that are classified correctly and not proved to be breakable."""

    @property
    def ok(self) -> bool:
        return not self.faults


def verify_evidence(
    evidence: Evidence, loaded: LoadedModel, arrays: Arrays, *, device: str, batch_size: int
) -> Iterator[Progress | VerificationReport]:
    """Ask `loaded` whether `evidence` is right; `arrays` is the whole test split. The last event is the report.

    Every image that is said to be classified correctly is, and no other; every image that is said to be broken has
    one adversarial image, which is finite, in [0, 1], in the ball of the radius named, and misclassified with
    finite logits. Evidence of format 2 also names the classes that are predicted, and its clean pictures are the
    data set's. Distances and tolerance are those of `dkl.verify`, logits are IEEE float32: where an image lies
    on the border by less than float32's rounding, other hardware or another batch size may decide otherwise.

    Raises EvidenceError where the evidence is about another checkpoint or other images. The model is moved to
    `device`, and its parameters lose their gradients.
    """
    _require_same(evidence, loaded, arrays)
    loaded.model.to(device).eval().requires_grad_(False)
    yield from _Check(evidence, loaded, *on_device(arrays, device), batch_size=batch_size).run()


def _require_same(evidence: Evidence, loaded: LoadedModel, arrays: Arrays) -> None:
    about, there = evidence.about, len(arrays.labels)
    if loaded.sha256 != about.checkpoint_sha256:
        raise EvidenceError(
            f"the evidence is about the checkpoint {about.checkpoint_sha256}, found {loaded.sha256}; "
            "give the file that was judged"
        )
    if evidence.images[-1] >= there or data_sha256(arrays, evidence.images) != about.data_sha256:
        raise EvidenceError(
            f"the evidence is about {len(evidence.images)} images of {about.question.dataset} that differ from "
            f"those found, {there} in all; give the data directory with the data that were used"
        )
    _, height, width, channels = arrays.images.shape
    if evidence.x8.shape[1:] != (channels, height, width):
        raise EvidenceError(
            f"the adversarial images have the shape {evidence.x8.shape[1:]}, those of "
            f"{about.question.dataset} {(channels, height, width)}"
        )


class _Check:
    """One evidence on its way through the model."""

    def __init__(
        self, evidence: Evidence, loaded: LoadedModel, images: Tensor, labels: Tensor, *, batch_size: int
    ) -> None:
        self.evidence = evidence
        self.loaded = loaded
        chosen = torch.from_numpy(evidence.images.copy()).to(labels.device)
        self.images, self.labels = images[chosen], labels[chosen]
        self.batch_size = batch_size
        self.faults: list[tuple[int, str]] = []
        self.done = 0
        self.total = len(evidence.images) + len(evidence.rows8) + len(evidence.rows32)
        self.started = perf_counter()

    def run(self) -> Iterator[Progress | VerificationReport]:
        e = self.evidence
        self._compare_labels()
        self._count_images()
        self._compare_pictures()
        correct = np.zeros(len(e.images), np.bool_)
        for rows in self._batches(np.arange(len(e.images))):
            correct[rows] = self._clean(rows)
            yield self._progress("clean images", rows)
        proved_at = np.full(len(e.images), len(e.radii))
        for rows8_or_32, stored in ((e.rows8, e.x8), (e.rows32, e.x32)):
            for radius in range(len(e.radii)):
                for places in self._batches(np.flatnonzero(e.broken_at[rows8_or_32] == radius)):
                    rows = rows8_or_32[places].astype(np.int64)
                    broken = self._adversarial(rows, stored[places], float(e.radii[radius]))
                    proved_at[rows[broken]] = np.minimum(proved_at[rows[broken]], radius)
                    yield self._progress("adversarial images", rows)
        yield VerificationReport(
            images=len(e.images),
            adversarial=len(e.rows8) + len(e.rows32),
            in_8_bits=len(e.rows8),
            faults=len(self.faults),
            sentences=tuple(sentence for _, sentence in sorted(self.faults)[:SENTENCES]),
            radii=tuple(e.radii.tolist()),
            clean_accuracy=float(correct.mean()),
            robust_accuracy=tuple(float((correct & (proved_at > r)).mean()) for r in range(len(e.radii))),
        )

    def _batches(self, rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        for first in range(0, len(rows), self.batch_size):
            yield rows[first : first + self.batch_size]

    # --- the claims ---------------------------------------------------------------------------------------

    def _compare_labels(self) -> None:
        labels = self.labels.cpu().numpy()
        for row in np.flatnonzero(self.evidence.labels != labels):
            self._fault(row, f"is labelled {self.evidence.labels[row]}, the data set says {labels[row]}")

    def _count_images(self) -> None:
        e = self.evidence
        stored = Counter([*e.rows8.tolist(), *e.rows32.tolist()])
        for row, broken in enumerate(e.broken_at >= 0):
            if broken and stored[row] != 1:
                self._fault(row, f"is said to be broken and has {stored[row]} adversarial images, not one")
            if not broken and stored[row]:
                self._fault(row, "has an adversarial image and is not said to be broken")

    def _compare_pictures(self) -> None:
        rows, pictures = self.evidence.rows_clean, self.evidence.x_clean
        if rows is None or pictures is None:
            return
        images = self.images[torch.from_numpy(rows.copy()).to(self.images.device)].cpu().numpy()
        for row in rows[(images != pictures).any(axis=(1, 2, 3))]:
            self._fault(row, "has a clean picture that is not the data set's image")

    def _clean(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        said, predicted = self.evidence.clean_correct[rows], self.evidence.predicted
        found = predict(self.loaded.model, as_pixels(self.images[rows]))
        right: NDArray[np.bool_] = (found == self.labels[rows]).cpu().numpy()
        for row, correctly in zip(rows[right != said], said[right != said], strict=True):
            one, other = ("correctly", "wrongly") if correctly else ("wrongly", "correctly")
            self._fault(row, f"is said to be classified {one}, and is classified {other}")
        if predicted is not None:
            self._compare_classes("is", rows[right == said], predicted, found.cpu().numpy()[right == said])
        return right

    def _compare_classes(
        self, what_is: str, rows: NDArray[np.int64], said: NDArray[np.int32], found: NDArray[np.int64]
    ) -> None:
        """`said` is about all images, `found` about `rows`."""
        for row, of_model in zip(rows, found, strict=True):
            if said[row] != of_model:
                one, other = (f"class {k}" if k >= 0 else "no class" for k in (said[row], of_model))
                self._fault(row, f"{what_is} said to be classified as {one}, and is classified as {other}")

    def _adversarial(self, rows: NDArray[np.int64], stored: NDArray[np.generic], eps: float) -> NDArray[np.bool_]:
        """Whether each of the `stored` images, (K, C, H, W), is adversarial within `eps`; (K,)."""
        threat = ThreatModel(norm=self.evidence.about.question.threat.norm, eps=eps)
        x, y = as_pixels(self.images[rows]), self.labels[rows]
        x_adv = torch.from_numpy(stored.copy()).to(x.device)
        x_adv = as_pixels(x_adv) if x_adv.dtype == torch.uint8 else x_adv
        verdict = verify(self.loaded.model, x, x_adv, y, threat)
        numbers = x_adv.isfinite().flatten(1).all(dim=1)
        pixels = allowed(x_adv, x_adv, threat)  # at distance 0 the range decides
        claims = {
            "holds values that are not finite": numbers,
            "leaves the pixel range [0, 1]": pixels | ~numbers,
            f"is farther from it than {threat.norm} {show_pixels(eps)}": verdict.allowed | ~pixels,
            "has logits that are not finite": verdict.finite | ~numbers,
            "is classified correctly": verdict.fooled | ~verdict.finite | ~numbers,
        }
        for claim, holds in claims.items():
            for row in rows[~holds.cpu().numpy()]:
                self._fault(row, f"has an adversarial image that {claim}")
        broken: NDArray[np.bool_] = verdict.broken.cpu().numpy()
        if (predicted := self.evidence.predicted_adv) is not None:
            found = verdict.predicted.cpu().numpy()[broken]
            self._compare_classes("has an adversarial image that is", rows[broken], predicted, found)
        return broken

    def _fault(self, row: int | np.integer[Any], sentence: str) -> None:
        self.faults.append((int(row), f"image {self.evidence.images[row]} {sentence}"))

    def _progress(self, phase: str, rows: NDArray[np.int64]) -> Progress:
        self.done += len(rows)
        rate = self.done / (perf_counter() - self.started)
        eta = (self.total - self.done) / rate
        return Progress(phase=phase, done=self.done, total=self.total, rate=rate, eta_seconds=eta)
