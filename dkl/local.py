"""Running a named recipe here and now: what `python -m dkl` and `dklbench run` have in common. No torch yet."""

import hashlib
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dkl.catalog import named, parse_overrides, resolve
from dkl.events import Event
from dkl.recipes import Evaluate, Protocol, Train, fingerprint


class InterruptedRunError(Exception):
    """Ctrl-C stopped the run between two events; the message says how to go on."""


@dataclass(frozen=True)
class LocalRun:
    """A recipe, where it works, and the file of the model it judges if it judges one."""

    recipe: Train | Evaluate
    workdir: Path
    checkpoint: Path | None

    def events(self, *, device: str, data_dir: Path) -> Iterator[Event]:
        """Run it. InterruptedRunError after the first Ctrl-C, once the work is kept; a second one kills."""
        from dkl import engine  # torch: seconds that a mistyped name should not cost

        events = engine.run(
            self.recipe,
            self.workdir,
            device=engine.pick_device(device),
            data_dir=data_dir,
            fetch=lambda _: self.checkpoint or Path(),
        )
        with _first_interrupt_noted() as interrupted:
            for event in events:
                yield event
                if interrupted:
                    events.close()
                    raise InterruptedRunError(f"stopped; the same command goes on from what is in {self.workdir}")


def prepare(name: str, changes: Sequence[str], *, checkpoint: Path | None, workdir: Path | None) -> LocalRun:
    """The named recipe with `changes` (PATH=VALUE); an evaluation judges the file `checkpoint`.

    Works in runs/NAME-FINGERPRINT unless `workdir` is given. ValueError with a sentence for what does not fit.
    """
    overrides: dict[str, Any] = parse_overrides(list(changes))
    judges = isinstance(named(name).recipe, Protocol)
    if judges and checkpoint is None:
        raise ValueError(f"{name} judges a model: say which with --checkpoint FILE")
    if checkpoint is not None and not judges:
        raise ValueError(f"{name} trains a model of its own; leave out --checkpoint")
    if checkpoint is not None:
        if not checkpoint.is_file():
            raise ValueError(f"there is no file {checkpoint}")
        with checkpoint.open("rb") as file:
            overrides["model"] = {"checkpoint": hashlib.file_digest(file, "sha256").hexdigest()}
    recipe = resolve(name, overrides)
    return LocalRun(recipe, workdir or Path("runs") / f"{name}-{fingerprint(recipe)[:8]}", checkpoint)


@contextmanager
def _first_interrupt_noted() -> Iterator[list[int]]:
    """A list that the first Ctrl-C puts something into, so that work stops between events."""
    noted: list[int] = []

    def note(number: int, _frame: object) -> None:
        noted.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)
