"""Jobs, workers, recipes and leaderboards as tables, with rich."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from dkl.catalog import Named, Published, PublishedAccuracy
from dkl.documents import show_pixels
from service.terminal_results import result_line
from service.wording import since


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
        outcome = result_line(job["result"]) if job["result"] else escape(job["reason"] or "")
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
    table.add_column("what it does")
    for name, entry in recipes.items():
        match entry.published:
            case Published(clean_accuracy=clean, robust_accuracy=robust):
                numbers = (f"{clean:.2%}", f"{robust:.2%}")
            case PublishedAccuracy(accuracy=accuracy):
                numbers = (f"{accuracy:.2%}", "")
            case _:
                numbers = ("", "")
        # Not the column but its text is kept on one line: the column is what gives way on a narrow terminal.
        table.add_row(name, *numbers, Text(entry.about, no_wrap=True, overflow="ellipsis"))
    table.caption = (
        "clean, AA: published accuracies, on clean images and under AutoAttack; "
        "dklbench recipes NAME: all that is known of one"
    )
    table.caption_justify = "left"
    return table


def recipe_words(name: str, entry: Named) -> Iterator[str]:
    """All that is known of a recipe, in lines with rich's markup."""
    yield f"[bold]{name}[/], {entry.recipe.kind}"
    yield escape(entry.about)
    for published in (entry.published, *entry.also):
        match published:
            case Published(clean_accuracy=clean, robust_accuracy=robust):
                at = "" if published.eps is None else f" at eps {show_pixels(published.eps)}"
                yield f"published: {clean:.2%} clean, {robust:.2%} under AutoAttack{at}; {_source(published)}"
            case PublishedAccuracy(accuracy=accuracy):
                yield f"published: {accuracy:.2%}; {_source(published)}"
            case None:
                yield "published: nothing"
    needs = f" {entry.needs}.job=ID" if entry.needs else ""
    yield f"to run it: dklbench submit {name}{needs}"
    yield f"every field of it: dklbench recipes {name} --json"


def _source(published: Published | PublishedAccuracy) -> str:
    return escape(f"{published.source}, {published.url}")
