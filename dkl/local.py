"""Running a named recipe here and now: what `python -m dkl` and `dklbench run` share. No torch yet."""

import hashlib
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dkl.catalog import Needs, named, parse_overrides, resolve
from dkl.events import Event
from dkl.protocols import Checkpoint, JobResult
from dkl.recipes import Distill, Recipe, Train, fingerprint


class InterruptedRunError(Exception):
    """Ctrl-C stopped the run between two events; the message says how to go on."""


@dataclass(frozen=True)
class Judged:
    """The model that an evaluation on this machine judges, as the command line names it: in one of five ways."""

    checkpoint: Path | None = None
    function: str | None = None
    """MODULE:NAME, importable from the current directory."""
    zoo: str | None = None
    timm: str | None = None
    torchvision: str | None = None

    @property
    def given(self) -> dict[str, str | Path]:
        """The ways that were taken, by the option's name."""
        options = {
            "--checkpoint": self.checkpoint,
            "--model": self.function,
            "--zoo": self.zoo,
            "--timm": self.timm,
            "--torchvision": self.torchvision,
        }
        return {option: value for option, value in options.items() if value is not None}

    def source(self) -> dict[str, str]:
        """The model source of a recipe; {} where none was named. ValueError for two, and for a missing file."""
        if len(self.given) > 1:
            raise ValueError(f"found {' and '.join(self.given)}; say in one way only which model to judge")
        if self.checkpoint is not None:
            if not self.checkpoint.is_file():
                raise ValueError(f"there is no file {self.checkpoint}")
            with self.checkpoint.open("rb") as file:
                return {"checkpoint": hashlib.file_digest(file, "sha256").hexdigest()}
        named_here = {
            "function": self.function,
            "zoo": self.zoo,
            "timm": self.timm,
            "torchvision": self.torchvision,
        }
        return {key: value for key, value in named_here.items() if value is not None}


def teacher_called(name: str | None) -> Judged:
    """What --teacher says: the file of a checkpoint, MODULE:NAME, a model of the zoo, of timm, or of torchvision,
    whose weights are in capitals."""
    match name:
        case None:
            return Judged()
        case str() if Path(name).suffix == ".safetensors" or Path(name).is_file():
            return Judged(checkpoint=Path(name))
        case str() if ":" in name:
            return Judged(function=name)
        case str() if "/" in name:
            return Judged(zoo=name)
        case str() if name.partition(".")[2].isupper():
            return Judged(torchvision=name)
        case _:
            return Judged(timm=name)


@dataclass(frozen=True)
class LocalRun:
    """A recipe, where it works, and the file of the model it judges or learns from, if there is one."""

    name: str
    recipe: Recipe
    workdir: Path
    checkpoint: Path | None
    plot: Path | None = None
    """Where the training curve is drawn to."""

    def _file(self, _: JobResult | Checkpoint) -> Path:
        assert self.checkpoint is not None  # prepare() saw to it
        return self.checkpoint

    def events(self, *, device: str, data_dir: Path) -> Iterator[Event]:
        """Run it. InterruptedRunError after the first Ctrl-C, once the work is kept; a second one kills."""
        from dkl import engine  # torch: seconds that a mistyped name should not cost

        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(
                0, str(Path.cwd())
            )  # where --model MODULE:NAME is looked for; python -m does so itself
        events = engine.run(
            self.recipe,
            self.workdir,
            device=engine.pick_device(device),
            data_dir=data_dir,
            fetch=self._file,
            allow_functions=True,
        )
        if self.plot is not None:
            from dkl.plot import plotted

            events = plotted(events, self.plot, _title(self.name, self.recipe))
        with _first_interrupt_noted() as interrupted:
            for event in events:
                yield event
                if interrupted:
                    events.close()
                    raise InterruptedRunError(f"stopped; the same command goes on from what is in {self.workdir}")


def prepare(
    name: str,
    changes: Sequence[str],
    *,
    judged: Judged,
    teacher: Judged | None = None,
    workdir: Path | None,
    plot: Path | None = None,
) -> LocalRun:
    """The named recipe with `changes` (PATH=VALUE); an evaluation judges `judged`, a distillation learns from
    `teacher`, or either from what a change names.

    Works in runs/NAME-FINGERPRINT unless `workdir` is given. A training draws its curve into `plot`. ValueError
    with a sentence for what does not fit.
    """
    overrides: dict[str, Any] = parse_overrides(list(changes))
    needs = named(name).needs
    if plot is not None:
        _check_plot(name, plot, judges=needs == "model")
    source = _source(name, needs, judged, teacher or Judged())
    if needs and source.given:
        overrides = {needs: source.source(), **overrides}
    elif needs and not any(path.partition(".")[0] == needs for path in overrides):
        raise ValueError(f"{name} {_PURPOSES[needs]}: say which with {_WAYS[needs]}")
    recipe = resolve(name, overrides)
    if needs and isinstance(getattr(recipe, needs), JobResult | Checkpoint) and not source.checkpoint:
        raise ValueError(
            f"jobs and stored checkpoints are a service's; here say which {needs} with {_WAYS[needs]}"
        )
    folder = workdir or Path("runs") / f"{name}-{fingerprint(recipe)[:8]}"
    return LocalRun(name, recipe, folder, source.checkpoint, plot)


def _source(name: str, needs: Needs, judged: Judged, teacher: Judged) -> Judged:
    """The one of the two that the recipe needs; ValueError where the other was given."""
    if judged.given and needs != "model":
        raise ValueError(f"{name} trains a model of its own; leave out {' and '.join(judged.given)}")
    if teacher.given and needs != "teacher":
        raise ValueError(f"{name} learns from no teacher; leave out --teacher")
    return teacher if needs == "teacher" else judged


def _check_plot(name: str, plot: Path, *, judges: bool) -> None:
    if judges:
        raise ValueError(f"{name} trains nothing, so it has no training curve; leave out --plot")
    try:
        from dkl.plot import check_target  # matplotlib: half a second for those who ask for it
    except ModuleNotFoundError as error:
        raise ValueError(f"--plot needs {error.name}; install it with: pip install 'dkl-bench[worker]'") from None
    check_target(plot)


def _title(name: str, recipe: Recipe) -> str:
    """What stands above a training curve: "ikl-at-digits, Linf 0.2, seed 0"."""
    assert isinstance(recipe, Train | Distill)  # prepare() saw to it
    return ", ".join([name, *([str(recipe.threat)] if recipe.threat else []), f"seed {recipe.seed}"])


_PURPOSES = {"model": "judges a model", "teacher": "learns from a teacher"}
_WAYS = {
    "model": "--checkpoint FILE, --model MODULE:NAME, --zoo NAME, --timm NAME or --torchvision NAME",
    "teacher": (
        "--teacher FILE, or --teacher MODULE:NAME for a function here, DATASET/THREAT/NAME for RobustBench's zoo, "
        "or a name of timm's or torchvision's"
    ),
}


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
