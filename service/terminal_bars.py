"""The progress of jobs in a terminal: a bar for each, and a line for what is worth keeping."""

from collections.abc import Iterable
from types import TracebackType
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from service.handle import Event
from service.terminal import console, notes
from service.terminal_results import remarks, result_line
from service.wording import duration


class Bars:
    """Live progress bars, one per job: `with Bars() as bars: bars.follow(bars.add("name"), events)`. Thread-safe.

    Bars are drawn on standard error, where that is a terminal. What is worth keeping goes to standard output: how
    each job ended and, with `epochs`, every epoch of a training, for one job at a time, and every worker that
    joins or leaves an evaluation. With `quiet` that goes to standard error, too: standard output is a program's.
    """

    def __init__(self, *, epochs: bool = False, quiet: bool = False) -> None:
        self._epochs = epochs
        self._quiet = quiet
        self._headed = False
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TaskProgressColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[state]}"),
            console=notes,
            disable=not notes.is_terminal,
            redirect_stdout=False,  # it may be a file
        )
        # Lines for the terminal that the bars are on have to go through the bars' console, to stand above them.
        self._one_terminal = notes.is_terminal and console.is_terminal
        self._lines = notes if quiet or self._one_terminal else console

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def add(self, title: str) -> TaskID:
        """A bar that waits."""
        return self._progress.add_task(title, total=None, start=False, state="[dim]waiting")

    def follow(self, bar: TaskID, events: Iterable[Event]) -> str:
        """Draw the events until they end; returns the job's last status."""
        status = "queued"
        title = next(task.description for task in self._progress.tasks if task.id == bar)
        for event in events:
            status = self._draw(bar, event, status, title)
        return status

    def _draw(self, bar: TaskID, event: Event, status: str, title: str) -> str:
        data = event.data
        match event.kind:
            case "end":
                status = data["status"]
            case "status":
                status = data["status"]
                if status in {"failed", "canceled", "cancelling"}:
                    self._keep(bar, title, f"[red]{status}: {escape(data['reason'] or '')}")
                elif status == "queued" and data["reason"]:
                    self._keep(bar, title, f"[yellow]waits again: {escape(data['reason'])}")
            case "joined" | "left" if self._epochs:
                why = f": {escape(data['reason'])}" if data.get("reason") else ""
                self._lines.print(f"[dim]{escape(data['worker'])} {event.kind}{why}")
            case "started":
                self._progress.start_task(bar)
                self._progress.update(bar, state=f"on {data['device']}")
            case "progress":
                self._progress.update(bar, completed=data["done"], total=data["total"], state=data["phase"])
            case "epoch" if self._epochs:
                self._print_epoch(data)
            case "epoch":
                self._progress.update(bar, state=_epoch(data))
            case "adjusted":
                self._lines.print(f"[yellow]adjusted:[/] {escape(data['sentence'])}")
            case "finished":
                total = next((t.total for t in self._progress.tasks if t.id == bar), None) or 1
                self._progress.update(bar, completed=total, total=total)
                self._keep(bar, title, result_line(data["result"]))
                for remark in remarks(data["result"], title):
                    self._lines.print(remark)
        return status

    def _keep(self, bar: TaskID, title: str, state: str) -> None:
        """Show the state on the bar, and as a line where the bar is drawn elsewhere or not at all."""
        self._progress.update(bar, state=state)
        if not self._one_terminal and not self._quiet:
            self._lines.print(f"{escape(title)}: {state}", soft_wrap=True)

    def _print_epoch(self, data: dict[str, Any]) -> None:
        """One line of a table whose columns are those that this training has."""
        cells = [(name, width, text) for name, width, text in _epoch_cells(data) if text is not None]
        if not self._headed:
            head = "  ".join(name.rjust(width) for name, width, _ in cells)
            self._lines.print(f"[dim]{head}", no_wrap=True, crop=False)
            self._headed = True
        line = "  ".join(text.rjust(width) for _, width, text in cells)
        self._lines.print(line, no_wrap=True, crop=False)


def _epoch_cells(data: dict[str, Any]) -> list[tuple[str, int, str | None]]:
    """Column, its width, and what it says; None where this training, or an older service, does not say it."""

    def share(name: str) -> str | None:
        value = data.get(name)
        return None if value is None else f"{value:.1%}"

    rate, left = data.get("images_per_second"), data.get("eta_seconds")
    return [
        ("epoch", 7, f"{data['epoch']}/{data['epochs']}"),
        ("loss", 7, f"{data['loss']:.4f}"),
        ("clean", 5, share("clean_accuracy")),
        ("adv.", 5, share("adversarial_accuracy")),
        ("held out", 8, share("validation_accuracy")),
        ("PGD", 5, share("validation_robust_accuracy")),
        ("lr", 8, f"{data['lr']:.3g}"),
        ("images/s", 8, None if rate is None else f"{rate:,.0f}"),
        ("left", 11, None if left is None else duration(left)),
    ]


def _epoch(data: dict[str, Any]) -> str:
    line = f"epoch {data['epoch']} of {data['epochs']}: loss {data['loss']:.3f}"
    clean, adversarial = data.get("clean_accuracy"), data.get("adversarial_accuracy")
    line += "" if clean is None else f", clean {clean:.1%}"
    return line if adversarial is None else f"{line}, adversarial {adversarial:.1%}"
