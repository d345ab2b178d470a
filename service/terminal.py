"""Where the command line writes: results to standard output, bars and notes to standard error."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TransferSpeedColumn,
)

console = Console(highlight=False)
"""What was asked for."""
notes = Console(stderr=True, highlight=False)
"""What goes on meanwhile. Bars are drawn only where it is a terminal."""
Thing = TypeVar("Thing")


def show_json(document: object) -> None:
    """One JSON document in one line, for programs."""
    print(json.dumps(document), flush=True)


def say(text: str) -> None:
    """A sentence with rich's markup, never broken by the terminal's width: ids and paths in it are copied."""
    console.print(text, soft_wrap=True)


def note(text: str) -> None:
    """As `say`, beside the result."""
    notes.print(text, soft_wrap=True)


@contextmanager
def transfer(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for bytes on their way; give the function how many have arrived, and of how many."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=28), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=notes, disable=not notes.is_terminal, redirect_stdout=False) as bars:
        bar = bars.add_task(title, total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total or None)


def counted(things: Sequence[Thing], title: str) -> Iterator[Thing]:
    """The things, with a bar that says how many are done."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=28), MofNCompleteColumn())
    with Progress(
        *columns, console=notes, disable=not notes.is_terminal, redirect_stdout=False, transient=True
    ) as bars:
        yield from bars.track(things, description=title)


@contextmanager
def busy(title: str) -> Iterator[None]:
    """A sign that something goes on, nobody knows for how long."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"))
    with Progress(
        *columns, console=notes, disable=not notes.is_terminal, redirect_stdout=False, transient=True
    ) as bars:
        bars.add_task(title, total=None)
        yield


def arriving(things: Iterable[Thing], title: str) -> Iterator[Thing]:
    """The things as they come, with a sign that something goes on while the next one is made."""
    source = iter(things)
    while True:
        with busy(title):
            thing = next(source, _END)
        if thing is _END:
            return
        yield thing  # type: ignore[misc]  # the end was sorted out above


_END = object()
