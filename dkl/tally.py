"""What an evaluation knows about each of its images, so far. N images; rows are 0..N-1. No torch here."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dkl.evidence import About, Evidence, standing_at

Rows = NDArray[np.intp]


class Finding(NamedTuple):
    """What one stage has found out about B images; the fields are those of `dkl.evidence.Evidence`."""

    rows: Rows
    broken: NDArray[np.bool_]
    restart: NDArray[np.int16]
    target: NDArray[np.int16]
    step: NDArray[np.int32]
    margin: NDArray[np.float32]
    flat: NDArray[np.bool_]
    x8: NDArray[np.uint8]
    """Adversarial images in 255ths, of the rows `in_8_bits`."""
    x32: NDArray[np.float32]
    """Adversarial images as they are, of the other broken rows."""
    in_8_bits: NDArray[np.bool_]
    """(B,)"""
    predicted: NDArray[np.int32] | None
    """(B,): the class predicted for the clean image, by the clean pass; for the adversarial image as it is stored,
    by an attack, -1 where there is none. None in files of an older version."""


class Tally:
    """Grows stage by stage. A radius is begun when all smaller ones are done."""

    def __init__(self, images: NDArray[np.int64], labels: NDArray[np.int64], seed: int) -> None:
        count = len(images)
        self.images, self.labels = images, labels
        self.clean_correct = np.zeros(count, np.bool_)
        self.radius = -1
        self.broken_at = np.full(count, -1, np.int8)
        self.stage = np.full(count, -1, np.int16)
        self.restart = np.full(count, -1, np.int16)
        self.target = np.full(count, -1, np.int16)
        self.step = np.full(count, -1, np.int32)
        self.margin = np.full(count, np.inf, np.float32)
        """The smallest of the last radius at which the image was attacked."""
        self.flat = np.zeros(count, np.bool_)
        self.x8: dict[int, NDArray[np.uint8]] = {}
        self.x32: dict[int, NDArray[np.float32]] = {}
        self.predicted = np.full(count, -1, np.int32)
        self.predicted_adv = np.full(count, -1, np.int32)
        self.predictions_known = True
        """False where a finding of an older version had none."""
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.could_still_break: dict[float, float] = {}
        """Per radius that was audited without a fallback: a fraction of all images, with 95 % confidence."""
        self._seed = seed

    def begin_radius(self) -> None:
        self.radius += 1
        self.margin[self.standing()] = np.inf
        self.flat[:] = False

    def add(self, stage: int, found: Finding) -> None:
        """Take in what the stage number `stage` found on some images; stage 0 is the clean pass."""
        if found.predicted is None:
            self.predictions_known = False
        else:
            (self.predicted_adv if stage else self.predicted)[found.rows] = found.predicted
        if stage == 0:
            self.clean_correct[found.rows] = ~found.broken
            return
        self.margin[found.rows] = np.minimum(self.margin[found.rows], found.margin)
        self.flat[found.rows] |= found.flat
        fallen = found.rows[found.broken]
        self.broken_at[fallen] = self.radius
        self.stage[fallen] = stage
        for name in ("restart", "target", "step"):
            getattr(self, name)[fallen] = getattr(found, name)[found.broken]
        self.x8 |= dict(zip(found.rows[found.in_8_bits].tolist(), found.x8, strict=True))
        self.x32 |= dict(zip(found.rows[found.broken & ~found.in_8_bits].tolist(), found.x32, strict=True))

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)

    def warn(self, sentence: str) -> None:
        self.warnings.append(sentence)

    def standing(self) -> Rows:
        """Images that were right at first and are not broken."""
        return np.flatnonzero(self.clean_correct & (self.broken_at < 0))

    def still(self, rows: Rows) -> Rows:
        """Those of `rows` that stand."""
        return np.intersect1d(rows, self.standing())

    def accuracy(self) -> float:
        """Fraction of all images that stand."""
        return len(self.standing()) / len(self.images)

    def robust(self, radius: int) -> NDArray[np.bool_]:
        """Which images stand at the radius with this index, as far as is known; bool (N,)."""
        return standing_at(radius, self.clean_correct, self.broken_at)

    def claimed(self) -> Rows:
        """Images that stand although a search took them for broken at this radius: the verifier refused them."""
        standing = self.standing()
        return standing[self.margin[standing] <= 0]

    def nearest(self, rows: Rows, share: float) -> Rows:
        """The part of `rows` with the smallest margins: `share` of them, rounded up; ascending."""
        order = np.lexsort((rows, self.margin[rows]))
        return np.sort(rows[order[: int(np.ceil(share * len(rows)))]])

    def random(self, rows: Rows, count: int) -> Rows:
        """`count` of `rows`, drawn uniformly without replacement: those whose images have the smallest numbers.

        An image's number follows from the seed and its position.
        """
        keys = [(self._seed, image) for image in self.images[rows].tolist()]
        numbers = [np.random.SeedSequence(key).generate_state(1, np.uint64)[0] for key in keys]
        return np.sort(rows[np.argsort(numbers, kind="stable")[:count]])

    def evidence(self, about: About, rows_clean: NDArray[np.int32], x_clean: NDArray[np.uint8]) -> Evidence:
        """All of it as a record to keep; `x_clean` (G, C, H, W) are the clean images of the rows `rows_clean`."""
        rows8, rows32, shape = sorted(self.x8), sorted(self.x32), x_clean.shape[1:]
        record = Evidence(
            about=about,
            images=self.images,
            labels=self.labels,
            clean_correct=self.clean_correct,
            radii=np.array(about.question.radii()),
            broken_at=self.broken_at,
            stage=self.stage,
            restart=self.restart,
            target=self.target,
            step=self.step,
            margin=np.where(np.isinf(self.margin), np.nan, self.margin).astype(np.float32),
            rows8=np.array(rows8, np.int32),
            x8=np.array([self.x8[row] for row in rows8], np.uint8).reshape(-1, *shape),
            rows32=np.array(rows32, np.int32),
            x32=np.array([self.x32[row] for row in rows32], np.float32).reshape(-1, *shape),
            predicted=self.predicted,
            predicted_adv=self.predicted_adv,
            rows_clean=rows_clean,
            x_clean=x_clean,
        )
        return record if self.predictions_known else record.in_format_1()
