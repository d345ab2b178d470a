"""The unit of work of an evaluation, of resuming it and of sharing it: one batch of one stage."""

from typing import NamedTuple

from dkl.attacks.search import Precision
from dkl.events import Adjusted, BatchDone, Phase
from dkl.policies import Stage
from dkl.tally import Finding, Rows


class Unit(NamedTuple):
    """Some images of the evaluation, and what is to be done to them."""

    stage: int
    """Number of the stage, from 0."""
    batch: int
    batches: int
    """In this stage."""
    rows: Rows
    attack: Stage | None
    """None in the clean pass."""

    @property
    def name(self) -> str:
        return self.attack.attack.kind if self.attack else "clean"

    @property
    def phase(self) -> Phase:
        return self.attack.phase if self.attack else "clean"

    @property
    def eps(self) -> float:
        return self.attack.eps if self.attack else 0.0

    @property
    def title(self) -> str:
        """For people: "apgd-t, batch 2 of 5"."""
        return f"{self.name}, batch {self.batch + 1} of {self.batches}"


class Judged(NamedTuple):
    """What became of a unit."""

    event: BatchDone
    found: Finding
    precision: Precision | None
    """Of the searches that may be in 16 bits, where it was judged; None in files of an older version."""
    device: str | None
    """What the device is called; None in files of an older version."""
    adjusted: tuple[Adjusted, ...] = ()
    """How memory was made to suffice."""
