"""How far an evaluation is, and how fast it goes."""

from collections.abc import Callable, Generator
from time import perf_counter

from dkl.attacks.hunt import passes
from dkl.attacks.outcome import Outcome
from dkl.attacks.reference import expected_forwards
from dkl.events import Progress
from dkl.policies import NEAREST, SAMPLED
from dkl.protocols import Protocol
from dkl.suites import SCREEN, Attack


class Way:
    """In forward passes; what a fallen image would have needed counts as done, so the bar only moves forward."""

    def __init__(self, recipe: Protocol, classes: int, images: int, *, in_16_bits: bool) -> None:
        """`in_16_bits`: a search that is faster than float32 comes first, where the policy has one."""
        self._recipe, self._classes, self._images = recipe, classes, images
        suite = sum(map(self.passes, recipe.attacks()))
        screen = sum(map(self.passes, SCREEN[recipe.threat.norm]))
        per_radius = {
            "exact": suite,
            "fast": (1 + NEAREST * in_16_bits) * suite,
            "audited": screen + (NEAREST + SAMPLED) * suite,
            "screen": screen,
        }
        self._total = images * (1 + len(recipe.radii()) * per_radius[recipe.policy])
        self._done = 0.0
        self._name = ""
        self._weight = self._rate = 0.0
        self._cost = self._members = self._finished = 0

    def passes(self, attack: Attack) -> int:
        """Forward passes that an image needs to survive `attack`."""
        ours = self._recipe.engine == "dkl"
        return passes(attack, self._classes) if ours else expected_forwards(attack, self._classes)

    def begin(self, name: str, cost: int, share: float, members: int) -> None:
        """A stage on `members` images begins, of `cost` passes each; `share` of all images was expected here."""
        self._name, self._cost, self._members, self._finished = name, cost, members, 0
        self._weight = self._images * cost * share

    def end_batch(self, members: int) -> None:
        self._finished += members

    def end(self) -> None:
        self._done += self._weight
        self._total = max(self._total, self._done)  # a fallback was not expected
        self._weight = 0.0

    def progress(self, batch: int, batches: int, members: int, forwards: int, rate: float) -> Progress:
        """While a batch of `members` images is at work, after `forwards` passes of all its images together."""
        in_batch = min(forwards / self._cost, members)
        done = self._done + self._weight * (self._finished + in_batch) / max(self._members, 1)
        total = max(self._total, self._done + self._weight)
        standing = self._members / self._images
        left = (total - done) * standing
        phase = f"{self._name}, batch {batch + 1} of {batches}"
        self._rate = rate
        return Progress(phase=phase, done=done, total=total, rate=rate, eta_seconds=left / rate if rate else 0.0)

    def arrived(self) -> Progress:
        """When nothing is left to do."""
        return Progress(phase="done", done=self._total, total=self._total, rate=self._rate, eta_seconds=0.0)


class Clock:
    """Counts the seconds in which work goes on, not those in which its consumer does something else."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def follow(
        self, work: Generator[int, None, Outcome], report: Callable[[int, float], Progress]
    ) -> Generator[Progress, None, Outcome]:
        started = perf_counter()
        try:
            while True:
                try:
                    forwards = next(work)
                except StopIteration as end:
                    return end.value
                finally:
                    self.seconds += perf_counter() - started
                yield report(forwards, forwards / self.seconds)
                started = perf_counter()
        finally:
            work.close()
