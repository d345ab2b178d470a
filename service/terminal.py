"""Jobs and leaderboards drawn in a terminal, with rich."""

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from dkl.catalog import RECIPES, Named, Published, PublishedAccuracy
from service.client import Event
from service.wording import duration, since

console = Console(highlight=False)


class Bars:
    """Live progress bars, one per job: `with Bars() as bars: bars.follow(bars.add("name"), events)`. Thread-safe.

    With `epochs` every epoch of a training leaves a line above the bars, for one job at a time, and so does every
    worker that joins or leaves an evaluation.
    """

    def __init__(self, *, epochs: bool = False) -> None:
        self._epochs = epochs
        self._headed = False
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
        title = next(task.description for task in self._progress.tasks if task.id == bar)
        for event in events:
            status = self._draw(bar, event, status, title)
        return status

    def _draw(self, bar: TaskID, event: Event, status: str, title: str) -> str:
        data = event.data
        match event.kind:
            case "status" | "end":
                status = data["status"]
                if status in {"failed", "canceled", "cancelling"}:
                    self._progress.update(bar, state=f"[red]{status}: {escape(data['reason'] or '')}")
                elif status == "queued" and data["reason"]:
                    self._progress.update(bar, state=f"[yellow]waits again: {escape(data['reason'])}")
            case "joined" | "left" if self._epochs:
                why = f": {escape(data['reason'])}" if data.get("reason") else ""
                self._progress.console.print(f"[dim]{escape(data['worker'])} {event.kind}{why}")
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
                self._progress.console.print(f"[yellow]adjusted:[/] {escape(data['sentence'])}")
            case "finished":
                total = next((t.total for t in self._progress.tasks if t.id == bar), None) or 1
                self._progress.update(bar, completed=total, total=total, state=_result(data["result"]))
                for remark in _remarks(data["result"], title):
                    self._progress.console.print(remark)
        return status

    def _print_epoch(self, data: dict[str, Any]) -> None:
        """One line of a table whose columns are those that this training has."""
        cells = [(name, width, text) for name, width, text in _epoch_cells(data) if text is not None]
        if not self._headed:
            head = "  ".join(name.rjust(width) for name, width, _ in cells)
            self._progress.console.print(f"[dim]{head}", no_wrap=True, crop=False)
            self._headed = True
        line = "  ".join(text.rjust(width) for _, width, text in cells)
        self._progress.console.print(line, no_wrap=True, crop=False)


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


def _result(result: dict[str, Any]) -> str:
    if result["kind"] == "train":
        return f"[green]trained[/]: {result['clean_accuracy']:.1%} clean, {result['seconds']:.0f} s"
    if result["kind"] == "distill":
        return f"[green]distilled[/]: {result['clean_accuracy']:.1%} clean, {result['seconds']:.0f} s"
    if result["kind"] == "import":
        return f"[green]taken in[/]: {result['parameters']:,} parameters"
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


def _remarks(result: dict[str, Any], title: str) -> list[str]:
    """What somebody should know who reads the accuracies."""
    if result["kind"] == "import":
        return [f"[yellow]note:[/] {escape(note)}" for note in result["notes"]]
    remarks = [f"[yellow]suspicious:[/] {escape(warning)}" for warning in result.get("warnings", ())]
    if (more := result.get("could_still_break")) is not None:
        remarks.append(
            f"with 95 % confidence the whole suite would break at most {round(more * result['images'])} more of "
            f"{result['images']} images"
        )
    match result["kind"]:
        case "train":
            return remarks + _remarks_on_weights(result) + _remarks_on_papers(result, title)
        case "distill":
            taught = _remarks_on_distilling(result)
            return remarks + _remarks_on_weights(result) + taught + _remarks_on_papers(result, title)
        case _:
            return remarks


def _remarks_on_weights(result: dict[str, Any]) -> list[str]:
    """What is out of the ordinary, which epoch's weights they are, and how they do on the parts of a long tail."""
    remarks = [f"[yellow]note:[/] {escape(note)}" for note in result.get("notes", ())]
    epoch, held_out = result.get("selected_epoch"), result.get("validation_accuracy")
    if epoch is not None and (held_out is not None or epoch != result["epochs"]):
        robust = result.get("validation_robust_accuracy")
        judged = "" if held_out is None else f": {held_out:.2%} on held-out images"
        under_pgd = "" if robust is None else f", {robust:.2%} under PGD"
        remarks.append(f"weights of epoch {epoch} of {result['epochs']}{judged}{under_pgd}")
    groups = {name: result.get(f"{name}_accuracy") for name in ("many", "medium", "few")}
    if shown := [f"{name} {value:.2%}" for name, value in groups.items() if value is not None]:
        remarks.append(f"classes with many, medium or few training images: {', '.join(shown)}")
    return remarks


def _remarks_on_papers(result: dict[str, Any], title: str) -> list[str]:
    entry = RECIPES.get(title)
    match entry.published if entry else None:
        case Published(clean_accuracy=clean, robust_accuracy=robust):
            attacked = f"AutoAttack: published {robust:.2%}, here not judged yet"
            return [f"{_beside('clean', clean, result['clean_accuracy'])}; {attacked}"]
        case PublishedAccuracy(accuracy=accuracy):
            return [_beside("accuracy", accuracy, result["clean_accuracy"])]
        case _:
            return []


def _remarks_on_distilling(result: dict[str, Any]) -> list[str]:
    """Whom it comes from, and what it took."""
    extra = result["extra_parameters"]
    cost = f"{1000 * result['seconds_per_iteration']:.3g} ms per iteration"
    beside = f", {extra:,} parameters learnt beside the student" if extra else ""
    return [f"teacher {escape(result['teacher'])}: {result['teacher_accuracy']:.2%}; {cost}{beside}"]


def _beside(what: str, published: float, here: float) -> str:
    return f"{what}: published {published:.2%}, here {here:.2%} ({100 * (here - published):+.2f})"


def leaderboard_table(found: dict[str, Any]) -> Table:
    """One board as the API returns it, accuracies in percent; fits into 80 columns."""
    board = found["board"]
    robust = "corrupt" if board and board.get("threat_model") == "corruptions" else "robust"
    ties = {"paired": "≈", "intervals": "~", None: ""}
    table = Table(
        title=board["title"] if board else "no results yet", title_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("#", justify="right")
    table.add_column("model", overflow="fold")
    table.add_column("clean", justify="right", no_wrap=True)
    table.add_column(robust, justify="right", no_wrap=True)
    table.add_column("95 %", no_wrap=True)
    table.add_column("known", justify="right", no_wrap=True)
    table.add_column("attack", overflow="fold")
    for row in found["rows"]:
        interval = row["robust_interval"]
        images = f", {row['images']} images" if row["images"] else ""
        table.add_row(
            f"{ties[row.get('tied')]}{row['rank']}",
            f"{escape(row['name'])} [dim]{escape(row['architecture'])}",
            f"{100 * row['clean_accuracy']:.2f}",
            f"{100 * row['robust_accuracy']:.2f}",
            f"{interval[0]:.0%}..{interval[1]:.0%}" if interval else "",
            f"[bold]{100 * row['best_known_accuracy']:.2f}",
            f"{row['suite']}{images}, {row['source']}",
        )
    table.caption = "in percent; known: the lowest anybody has shown; ≈ ~: cannot be told from #1"
    if found["total"] > len(found["rows"]):
        table.caption += f"\n{len(found['rows'])} of {found['total']} rows; --page has the others"
    table.caption_justify = "left"
    return table


def jobs_table(jobs: Sequence[dict[str, Any]]) -> Table:
    table = Table()
    for name in ("id", "recipe", "status", "progress", "result"):
        table.add_column(name)
    for job in jobs:
        outcome = _result(job["result"]) if job["result"] else escape(job["reason"] or "")
        table.add_row(job["id"], escape(job["name"] or job["kind"]), job["status"], escape(_doing(job)), outcome)
    return table


def _doing(job: dict[str, Any]) -> str:
    """How far it is and who is at work on it, or the queue that it waits in."""
    progress, workers = job["progress"], job["workers"]
    done = (
        f"{progress['done'] / progress['total']:.0%} {progress['phase']}" if progress and not job["result"] else ""
    )
    if job["status"] == "queued":
        place = f"queue {job['queue']}" + (f", priority {job['priority']:+d}" if job["priority"] else "")
        return f"{place}; {done}" if done else place
    if not workers:
        return done
    more = f" and {len(workers) - 1} more" if len(workers) > 1 else ""
    return f"{done} on {workers[0]}{more}".strip()


def workers_table(workers: Sequence[dict[str, Any]]) -> Table:
    """As the interface lists them; fits into 80 columns."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("worker", "state", "jobs", "device", "queues"):
        table.add_column(name, overflow="fold")
    table.add_column("GPU", justify="right", no_wrap=True)
    table.add_column("heard of", no_wrap=True)
    colours = {"working": "cyan", "idle": "green", "draining": "yellow", "silent": "red"}
    for worker in workers:
        use = worker["gpu_use"]
        table.add_row(
            escape(worker["name"]),
            f"[{colours[worker['state']]}]{worker['state']}",
            " ".join(worker["jobs"]),
            escape(worker["device"]),
            escape(", ".join(worker["queues"])),
            "" if use is None or worker["state"] == "silent" else f"{use:.0%}",
            since(worker["seconds_since_beat"]),
        )
    return table


def recipes_table(recipes: Mapping[str, Named]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("recipe", no_wrap=True)  # to be copied
    table.add_column("clean", justify="right", no_wrap=True)
    table.add_column("AA", justify="right", no_wrap=True)
    table.add_column("what it does", overflow="fold")
    for name, entry in recipes.items():
        match entry.published:
            case Published(clean_accuracy=clean, robust_accuracy=robust):
                numbers = (f"{clean:.2%}", f"{robust:.2%}")
            case PublishedAccuracy(accuracy=accuracy):
                numbers = (f"{accuracy:.2%}", "")
            case _:
                numbers = ("", "")
        table.add_row(name, *numbers, escape(entry.about))
    table.caption = "clean, AA: published accuracies, on clean images and under AutoAttack"
    table.caption_justify = "left"
    return table
