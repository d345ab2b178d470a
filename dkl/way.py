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
from dkl.units import Unit


class Way:
    """In forward passes; what a fallen image would have needed counts as done, so the bar only moves forward."""

    def __init__(self, recipe: Protocol, classes: int, images: int, *, in_16_bits: bool) -> None:
        self._recipe, self._classes, self._images = recipe, classes, images
        self._done = self._shown = 0.0
        self._weight = self._rate = 0.0
        self._cost = self._members = self._finished = 0
        self.plan(in_16_bits=in_16_bits)

    def plan(self, *, in_16_bits: bool) -> None:
        """`in_16_bits`: a search that is faster than float32 comes first, where the policy has one."""
        recipe = self._recipe
        suite = sum(map(self.passes, recipe.attacks()))
        screen = sum(map(self.passes, SCREEN[recipe.threat.norm]))
        per_radius = {
            "exact": suite,
            "fast": (1 + NEAREST * in_16_bits) * suite,
            "audited": screen + (NEAREST + SAMPLED) * suite,
            "screen": screen,
        }
        self._total = self._images * (1 + len(recipe.radii()) * per_radius[recipe.policy])

    def passes(self, attack: Attack) -> int:
        """Forward passes that an image needs to survive `attack`."""
        ours = self._recipe.engine == "dkl"
        return passes(attack, self._classes) if ours else expected_forwards(attack, self._classes)

    def begin(self, *, cost: int, share: float, members: int) -> None:
        """A stage on `members` images begins, of `cost` passes each; `share` of all images was expected here."""
        self._cost, self._members, self._finished = cost, members, 0
        self._weight = self._images * cost * share

    def end_batch(self, members: int) -> None:
        self._finished += members

    def end(self) -> None:
        self._done += self._weight
        self._total = max(self._total, self._done)  # a fallback was not expected
        self._weight = 0.0

    def progress(self, unit: Unit, forwards: int, rate: float, *, ahead: int, workers: int) -> Progress:
        """While `unit` is at work, after `forwards` passes of all its images together, `rate` in a second.

        Beyond what has ended, `ahead` images of this stage are through; `workers` that are as fast share the rest.
        """
        in_unit = min(forwards / self._cost, len(unit.rows))
        passed = min((self._finished + ahead + in_unit) / max(self._members, 1), 1.0)
        done = self._shown = max(self._shown, self._done + self._weight * passed)  # a unit may begin again
        total = max(self._total, self._done + self._weight)
        left = (total - done) * self._members / self._images
        self._rate = rate * workers
        eta = left / self._rate if rate else 0.0
        return Progress(phase=unit.title, done=done, total=total, rate=self._rate, eta_seconds=eta)

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
