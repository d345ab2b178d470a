"""Judging one unit on this machine: the model, the images on the device, and the searches made of the model.

What comes out depends on the unit alone (and on the rounding of the device's kernels): not on what was judged
before, by whom, or how often memory was full. There is one exception: pyautoattack and models that draw random
numbers see other ones where fewer images pass at once.
"""

from collections.abc import Callable, Generator
from functools import partial
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dkl.attacks.hunt import hunt, rounds
from dkl.attacks.loan import Loan, by_turns
from dkl.attacks.outcome import Outcome
from dkl.attacks.reference import attack_by_reference
from dkl.attacks.search import Precision, Search
from dkl.batches import as_pixels, on_device
from dkl.datasets import Arrays
from dkl.documents import ThreatModel
from dkl.events import BatchDone, Progress
from dkl.memory import FULL, Room, out_of_memory, required
from dkl.packing import of_attack, of_clean_pass
from dkl.policies import Stage, planned
from dkl.preflight import inspect
from dkl.protocols import Evaluate
from dkl.provenance import device_name
from dkl.suites import APGD, Attack, Square
from dkl.summary import say_once
from dkl.tally import Finding, Rows
from dkl.units import Judged, Unit
from dkl.verify import predict
from dkl.way import Clock
from dkl.weights import LoadedModel

INSPECTED = 32
"""Images that the model is looked at with before any attack."""

Report = Callable[[int, float], Progress]
"""From the forward passes of a unit so far, and how many there are per second."""


def batch_seed(seed: int, batch: int) -> int:
    """The seed of what is random in the model or in pyautoattack, in batch number `batch`; below 2**32."""
    return int(np.random.SeedSequence(seed, spawn_key=(batch,)).generate_state(1)[0])


class Bench:
    """A model and the images that it is judged on, on one device."""

    def __init__(
        self, recipe: Evaluate, loaded: LoadedModel, arrays: Arrays, chosen: NDArray[np.int64], device: str
    ) -> None:
        """`chosen` are positions in `arrays`. The model is moved, and its parameters lose their gradients."""
        self.recipe, self.classes = recipe, loaded.classes
        self.device, self.device_name = torch.device(device), device_name(device)
        with required("the model"):
            self.model = loaded.model.to(device).eval().requires_grad_(False)
        with required(f"the set of {len(chosen)} images"):
            self.images, self.labels = on_device(
                Arrays(arrays.images[chosen], arrays.labels[chosen], arrays.classes), device
            )
        self.positions = chosen
        self.room = Room(max(recipe.chunk_size, *map(self._lanes, planned(recipe))))
        self._searches: dict[Precision, Search] = {}

    def inspect(self) -> tuple[str, ...]:
        """What is wrong with the model as a function of images, before time is spent on it."""
        return self.room.fitting(self._looked_at(), "the first look at the model", self._inspect)

    def judge(self, unit: Unit, precision: Precision, report: Report) -> Generator[Progress, None, Judged]:
        """`precision` is what goes on record; the unit knows that of its own search.

        MemoryError where not even one image fits.
        """
        lanes = self._lanes(unit.attack.attack) if unit.attack else 1
        while True:
            try:
                event, found = yield from self._attempt(unit, report)
            except FULL as error:
                if (said := out_of_memory(error)) is None:
                    raise
            else:
                return Judged(event, found, precision, self.device_name, self.room.take_adjusted())
            self._searches.clear()  # what they recorded on a GPU takes memory, too
            self.room.halve(min(self.room.images, len(unit.rows) * lanes), said, unit.title)

    # --- the work ---

    def _inspect(self, count: int) -> tuple[str, ...]:
        attacks = planned(self.recipe)
        with Loan(self.recipe.seed).turn():  # what the model warns about comes again, in the clean pass
            return inspect(
                self.model,
                as_pixels(self.images[:count]),
                self.labels[:count],
                classes=self.classes,
                random_expected=any(isinstance(attack, APGD) and attack.eot > 1 for attack in attacks),
                needs_gradient=not all(isinstance(attack, Square) for attack in attacks),
            )

    def _attempt(self, unit: Unit, report: Report) -> Generator[Progress, None, tuple[BatchDone, Finding]]:
        if unit.attack is not None:
            return (yield from self._attack(unit, unit.attack, report))
        event, found = self._clean(unit)
        yield report(len(unit.rows), len(unit.rows) / event.seconds)
        return event, found

    def _clean(self, unit: Unit) -> tuple[BatchDone, Finding]:
        started = perf_counter()
        x, y = self._pixels(unit.rows)
        loan = Loan(batch_seed(self.recipe.seed, unit.batch))
        with loan.turn():
            predicted = torch.cat([predict(self.model, some) for some in x.split(self.room.images)])
        notes = loan.take_notes()
        if (not_finite := predicted < 0).any():
            notes.append(f"{not_finite.sum()} images have logits that are not finite, and count as wrong")
        found = of_clean_pass(unit.rows, predicted, y, tuple(x.shape[1:]))
        return self._event(unit, found, len(unit.rows), 0, perf_counter() - started, 0, notes), found

    def _attack(
        self, unit: Unit, stage: Stage, report: Report
    ) -> Generator[Progress, None, tuple[BatchDone, Finding]]:
        x, y = self._pixels(unit.rows)
        threat = ThreatModel(norm=self.recipe.threat.norm, eps=stage.eps)
        loan = Loan(batch_seed(self.recipe.seed, unit.batch))
        clock = Clock()
        outcome = yield from clock.follow(self._work(stage, x, y, unit.rows, threat, loan), report)
        started = perf_counter()
        with loan.turn():
            found = of_attack(unit.rows, outcome, self.model, x, y, threat, at_once=self.room.images)
        seconds = clock.seconds + perf_counter() - started
        forwards, backwards = int(outcome.forwards.sum()), int(outcome.backwards.sum())
        notes = [*loan.take_notes(), *_suspicions(outcome, stage.precision)]
        return self._event(unit, found, forwards, backwards, seconds, outcome.rejected, notes), found

    def _work(
        self, stage: Stage, x: Tensor, y: Tensor, rows: Rows, threat: ThreatModel, loan: Loan
    ) -> Generator[int, None, Outcome]:
        if self.recipe.engine == "pyautoattack":
            return attack_by_reference(
                stage.attack,
                self.model,
                x,
                y,
                threat,
                classes=self.classes,
                seed=loan.seed,
                loan=loan,
                at_once=self.room.images,
            )
        chase = hunt(
            stage.attack,
            self.model,
            self._search(stage.precision),
            x,
            y,
            threat,
            images=torch.from_numpy(self.positions[rows]).to(self.device),
            classes=self.classes,
            seed=self.recipe.seed,
            use=stage.use,
            lanes=self.room.images,
        )
        return by_turns(chase, loan)

    def _search(self, precision: Precision) -> Search:
        if precision not in self._searches:
            self._searches[precision] = self.room.fitting(
                self._looked_at(), "the making of the search model", partial(self._new_search, precision)
            )
        return self._searches[precision]

    def _new_search(self, precision: Precision, count: int) -> Search:
        with Loan(self.recipe.seed).turn():  # its own, so that no attack's random numbers depend on it
            return Search(self.model, as_pixels(self.images[:count]), precision)

    def _lanes(self, attack: Attack) -> int:
        """How many copies of an image `attack` has at the same time."""
        ours = self.recipe.engine == "dkl"
        return max(one.lanes for one in rounds(attack, self.classes)) if ours else 1

    def _looked_at(self) -> int:
        return min(INSPECTED, len(self.images))

    def _pixels(self, rows: Rows) -> tuple[Tensor, Tensor]:
        at = torch.from_numpy(rows).to(self.device)
        return as_pixels(self.images[at]), self.labels[at]

    def _event(
        self,
        unit: Unit,
        found: Finding,
        forwards: int,
        backwards: int,
        seconds: float,
        rejected: int,
        notes: list[str],
    ) -> BatchDone:
        return BatchDone(
            stage=unit.stage,
            name=unit.name,
            phase=unit.phase,
            eps=unit.eps,
            batch=unit.batch,
            batches=unit.batches,
            images=tuple(self.positions[unit.rows].tolist()),
            standing="".join("0" if flag else "1" for flag in found.broken),
            forwards=forwards,
            backwards=backwards,
            seconds=seconds,
            rejected=rejected,
            warnings=say_once(f"{unit.name}: {note}" for note in notes),
        )


def _suspicions(outcome: Outcome, precision: Precision) -> list[str]:
    notes = []
    if not outcome.finite:
        notes.append("some logits were not finite numbers, so the attack may have missed adversarial images")
    if flat := int(outcome.flat.sum()):
        notes.append(f"{flat} images have gradients of exactly zero, so gradients may mislead here")
    if precision == "float32" and outcome.rejected:
        notes.append(
            f"the verifier refused {outcome.rejected} images that the search took for broken: outside the ball or "
            "the pixel range, with logits that are not finite, or classified correctly"
        )
    elif count := outcome.inadmissible:
        # What 16 bits round is for the policy to judge, which knows who is looked at again.
        notes.append(
            f"the verifier refused {count} images that the search took for broken: outside the ball or the pixel "
            "range, or with logits that are not finite"
        )
    return notes
