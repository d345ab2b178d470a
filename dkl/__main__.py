"""python -m dkl RECIPE [PATH=VALUE ...]: run a named recipe here and print its events, one JSON line each."""

import argparse
import hashlib
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dkl.catalog import named, parse_overrides, resolve
from dkl.recipes import Evaluate, Protocol, Train, fingerprint

INVALID, INTERRUPTED = 2, 130


def main(words: list[str] | None = None) -> int:
    """The exit code: 0, 2 with a sentence on stderr for what the caller can mend, 130 after Ctrl-C."""
    arguments = _parser().parse_intermixed_args(words)
    try:
        recipe = _recipe(arguments)
        workdir = arguments.workdir or Path("runs") / f"{arguments.recipe}-{fingerprint(recipe)[:8]}"
        completed = _run(recipe, workdir, arguments)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return INVALID
    except KeyboardInterrupt:
        return INTERRUPTED
    if not completed:
        print(f"stopped; the same command goes on from what is in {workdir}", file=sys.stderr)
        return INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dkl", description=__doc__)
    parser.add_argument("recipe", metavar="RECIPE", help="a name from the catalogue (dkl/catalog.py)")
    parser.add_argument("changes", metavar="PATH=VALUE", nargs="*", help="threat.eps=4/255, epochs=2, ...")
    parser.add_argument("--workdir", type=Path, help="where results go; default runs/RECIPE-FINGERPRINT")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="where data sets lie (default: data)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="the model that an evaluation judges")
    return parser


def _recipe(arguments: argparse.Namespace) -> Train | Evaluate:
    changes: dict[str, Any] = parse_overrides(arguments.changes)
    judges = isinstance(named(arguments.recipe).recipe, Protocol)
    if judges and arguments.checkpoint is None:
        raise ValueError(f"{arguments.recipe} judges a model: say which with --checkpoint FILE")
    if arguments.checkpoint is not None and not judges:
        raise ValueError(f"{arguments.recipe} trains a model of its own; leave out --checkpoint")
    if judges and not arguments.checkpoint.is_file():
        raise ValueError(f"there is no file {arguments.checkpoint}")
    if judges:
        with arguments.checkpoint.open("rb") as file:
            changes["model"] = {"checkpoint": hashlib.file_digest(file, "sha256").hexdigest()}
    return resolve(arguments.recipe, changes)


def _run(recipe: Train | Evaluate, workdir: Path, arguments: argparse.Namespace) -> bool:
    """Print the events; False if Ctrl-C ended it early."""
    from dkl import engine  # torch: seconds that a mistyped name should not cost

    events = engine.run(
        recipe,
        workdir,
        device=engine.pick_device(arguments.device),
        data_dir=arguments.data_dir,
        fetch=lambda _: arguments.checkpoint,
    )
    with _first_interrupt_noted() as interrupted:
        for event in events:
            print(event.model_dump_json(), flush=True)
            if interrupted:
                events.close()
                return False
    return True


@contextmanager
def _first_interrupt_noted() -> Iterator[list[int]]:
    """A list that the first Ctrl-C puts something into, so that work stops between events; a second one kills."""
    noted: list[int] = []

    def note(number: int, _frame: object) -> None:
        noted.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


if __name__ == "__main__":
    sys.exit(main())
