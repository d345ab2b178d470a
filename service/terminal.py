"""Jobs and leaderboards drawn in a terminal, with rich."""

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from dkl.documents import show_pixels
from service.client import Event

console = Console(highlight=False)


class Bars:
    """Live progress bars, one per job: `with Bars() as bars: bars.follow("name", events)`. Thread-safe."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TaskProgressColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[state]}"),
            console=console,
        )

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
        for event in events:
            status = self._draw(bar, event, status)
        return status

    def _draw(self, bar: TaskID, event: Event, status: str) -> str:
        data = event.data
        match event.kind:
            case "status" | "end":
                status = data["status"]
                if status in {"failed", "canceled", "cancelling"}:
                    self._progress.update(bar, state=f"[red]{status}: {escape(data['reason'] or '')}")
            case "started":
                self._progress.start_task(bar)
                self._progress.update(bar, state=f"on {data['device']}")
            case "progress":
                self._progress.update(bar, completed=data["done"], total=data["total"], state=data["phase"])
            case "epoch":
                self._progress.update(bar, state=_epoch(data))
            case "finished":
                total = next((t.total for t in self._progress.tasks if t.id == bar), None) or 1
                self._progress.update(bar, completed=total, total=total, state=_result(data["result"]))
                for remark in _remarks(data["result"]):
                    self._progress.console.print(remark)
        return status


def _epoch(data: dict[str, Any]) -> str:
    line = (
        f"epoch {data['epoch']} of {data['epochs']}: loss {data['loss']:.3f}, clean {data['clean_accuracy']:.1%}"
    )
    adversarial = data["adversarial_accuracy"]
    return line if adversarial is None else f"{line}, adversarial {adversarial:.1%}"


def _result(result: dict[str, Any]) -> str:
    if result["kind"] == "train":
        return f"[green]trained[/]: {result['clean_accuracy']:.1%} clean, {result['seconds']:.0f} s"
    if result["kind"] == "corruptions":
        accuracies = f"{result['clean_accuracy']:.1%} clean, [bold]{result['corruption_accuracy']:.1%} corrupted"
        return f"[green]judged[/]: {accuracies}"
    at_most = "at most " if result.get("stopped_early") else ""
    line = (
        f"[green]judged[/]: {result['clean_accuracy']:.1%} clean, "
        f"{at_most}[bold]{result['robust_accuracy']:.1%} robust[/]"
    )
    match result.get("protocol"):
        case None | "AutoAttack standard":
            return line
        case "screen":
            return f"{line}, an estimate, not AutoAttack"
        case protocol:
            return f"{line}, {protocol}"


def _remarks(result: dict[str, Any]) -> list[str]:
    """What somebody should know who reads the accuracies."""
    remarks = [f"[yellow]suspicious:[/] {escape(warning)}" for warning in result.get("warnings", ())]
    if (more := result.get("could_still_break")) is not None:
        remarks.append(
            f"with 95 % confidence the whole suite would break at most {round(more * result['images'])} more of "
            f"{result['images']} images"
        )
    return remarks


def leaderboard_table(found: dict[str, Any]) -> Table:
    """One board as the API returns it; fits into 80 columns."""
    board = found["board"]
    table = Table(
        title=board["title"] if board else "no results yet", title_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("#", justify="right")
    table.add_column("model", overflow="fold")
    table.add_column("clean", justify="right", no_wrap=True)
    table.add_column("robust", justify="right", no_wrap=True)
    table.add_column("95 %", no_wrap=True)
    table.add_column("attack", overflow="fold")
    for row in found["rows"]:
        interval = row["robust_interval"]
        images = f", {row['images']} images" if row["images"] else ""
        table.add_row(
            str(row["rank"]),
            f"{escape(row['name'])} [dim]{row['architecture']}",
            f"{row['clean_accuracy']:.2%}",
            f"[bold]{row['robust_accuracy']:.2%}",
            f"{interval[0]:.0%}..{interval[1]:.0%}" if interval else "",
            f"{row['suite']}{images}, {row['source']}",
        )
    return table


def jobs_table(jobs: Sequence[dict[str, Any]]) -> Table:
    table = Table()
    for name in ("id", "recipe", "status", "progress", "result"):
        table.add_column(name)
    for job in jobs:
        progress, result = job["progress"], job["result"]
        done = f"{progress['done'] / progress['total']:.0%} {progress['phase']}" if progress and not result else ""
        outcome = _result(result) if result else escape(job["reason"] or "")
        table.add_row(job["id"], escape(job["name"] or job["kind"]), job["status"], done, outcome)
    return table


def recipes_table(recipes: Sequence[dict[str, Any]]) -> Table:
    table = Table("recipe", "what it does", "threat model")
    for recipe in recipes:
        threat = recipe["recipe"].get("threat")
        where = f"{threat['norm']} {show_pixels(threat['eps'])}" if threat else ""
        table.add_row(recipe["name"], recipe["about"], where)
    return table
