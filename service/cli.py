"""The `dklbench` command."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from dkl.catalog import RECIPES, parse_overrides
from dkl.local import InterruptedRunError, prepare
from service import terminal
from service.client import Client, Event, ServiceError
from service.demo import DemoError, tell_the_story
from service.settings import Settings, settings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Adversarial robustness benchmarking: train, attack, rank.",
)
console = terminal.console

Recipe = Annotated[str, typer.Argument(help="A recipe's name, see `dklbench recipes`.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Changes to it, such as epochs=2 threat.eps=4/255.", metavar="PATH=VALUE..."),
]
Url = Annotated[str | None, typer.Option(help="The service to talk to; default: DKLBENCH_URL, or this machine's.")]
JobId = Annotated[str, typer.Argument(help="A job's id, see `dklbench jobs`.")]
Host = Annotated[str | None, typer.Option(help="Address to listen on.")]
Port = Annotated[int | None, typer.Option(help="Port to listen on.")]


def main() -> None:
    """Entry point: every expected error is one sentence on stderr, and exit code 1."""
    from service.embedded import StartError

    stderr = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        app()
    except InterruptedRunError as error:
        stderr.print(escape(str(error)))
        raise SystemExit(130) from None
    except (ServiceError, StartError, DemoError, ValueError, OSError, FloatingPointError) as error:
        stderr.print(f"[red]error:[/] {escape(str(error))}")
        raise SystemExit(1) from None


# --- the service ------------------------------------------------------------------------------------------


@app.command()
def up(host: Host = None, port: Port = None) -> None:
    """Serve this machine: web pages, REST interface and a worker per GPU, until Ctrl-C."""
    from service.embedded import embedded

    chosen = _settings(host, port)
    with embedded(chosen) as server:
        console.print(f"dkl-bench at [bold]{_url(chosen)}[/], data in {chosen.data_dir}; Ctrl-C stops")
        server.run()


@app.command()
def demo(
    host: Host = None,
    port: Port = None,
    exit: Annotated[bool, typer.Option("--exit", help="Stop when the story is told.")] = False,
) -> None:
    """Train a natural and an adversarially trained model on digits, attack both, and show the ranking."""
    from service.embedded import free_port

    chosen = _settings(host, port)
    if port is None:
        chosen = chosen.model_copy(update={"port": free_port(chosen)})
    with _served(chosen):
        url = _url(chosen)
        console.print(f"Two small models learn handwritten digits, one of them adversarially; watch at {url}/jobs")
        with Client(url) as client:
            tell_the_story(client)
        console.print(f"The leaderboard: [bold]{url}[/]" + ("" if exit else "   (Ctrl-C stops)"))
        while not exit:
            time.sleep(3600)


@app.command()
def migrate() -> None:
    """Bring the database to the newest schema. `up` does it by itself."""
    from service import db

    db.migrate(db.connect(settings().database))


def _settings(host: str | None, port: int | None) -> Settings:
    given = {name: value for name, value in {"host": host, "port": port}.items() if value is not None}
    return settings().model_copy(update=given)


def _url(chosen: Settings) -> str:
    host = "127.0.0.1" if chosen.host in {"0.0.0.0", "::"} else chosen.host
    return f"http://{host}:{chosen.port}"


@contextmanager
def _served(chosen: Settings) -> Iterator[None]:
    """The embedded service in the background."""
    from service.embedded import embedded

    with embedded(chosen) as server:
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        try:
            while not server.started:
                if not thread.is_alive():
                    raise ServiceError("the server did not start; its message is above")
                time.sleep(0.05)
            yield
        except KeyboardInterrupt:
            console.print("stopping; what is unfinished resumes at the next start")
        finally:
            server.stop()
            thread.join()


# --- its clients ------------------------------------------------------------------------------------------


def _client(url: str | None) -> Client:
    return Client(url or settings().url)


@app.command()
def submit(
    recipe: Recipe,
    overrides: Overrides = None,
    url: Url = None,
    watch: Annotated[bool, typer.Option("--watch", help="Stay and draw its progress.")] = False,
) -> None:
    """Queue a job. An evaluation needs its model: model.job=ID of a training job."""
    with _client(url) as client:
        job = client.submit(recipe, parse_overrides(overrides or []))
        console.print(f"job [bold]{job['id']}[/] is queued: {client.url}/jobs/{job['id']}")
        if watch:
            _watch(client, job)


@app.command(name="watch")
def watch_job(job_id: JobId, url: Url = None) -> None:
    """Draw a job's progress until it ends."""
    with _client(url) as client:
        _watch(client, client.job(job_id))


def _watch(client: Client, job: dict[str, Any]) -> None:
    with terminal.Bars() as bars:
        status = bars.follow(bars.add(job["name"] or job["kind"]), client.watch(job["id"]))
    if status != "succeeded":
        raise typer.Exit(1)


@app.command()
def cancel(job_id: JobId, url: Url = None) -> None:
    """End a job."""
    with _client(url) as client:
        console.print(f"job {job_id} is {client.cancel(job_id)['status']}")


@app.command()
def jobs(url: Url = None) -> None:
    """List the newest jobs."""
    with _client(url) as client:
        console.print(terminal.jobs_table(client.jobs()))


@app.command()
def leaderboard(
    dataset: Annotated[str | None, typer.Option(help="digits, cifar10, ...")] = None,
    norm: Annotated[str | None, typer.Option(help="Linf, L2 or L1.")] = None,
    url: Url = None,
) -> None:
    """Show the ranking."""
    query = {name: value for name, value in {"dataset": dataset, "norm": norm}.items() if value}
    with _client(url) as client:
        console.print(terminal.leaderboard_table(client.leaderboard(**query)))


# --- without a service ------------------------------------------------------------------------------------


@app.command()
def recipes() -> None:
    """List the named recipes."""
    console.print(
        terminal.recipes_table(
            [
                {"name": name, "about": entry.about, "recipe": entry.recipe.model_dump(mode="json")}
                for name, entry in RECIPES.items()
            ]
        )
    )


@app.command()
def run(
    recipe: Recipe,
    overrides: Overrides = None,
    workdir: Annotated[Path | None, typer.Option(help="Where it keeps its state and result.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="The model to judge, for an evaluation.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """Run a recipe here and now, without the service. Run it again to go on where it was interrupted."""
    local = prepare(recipe, overrides or [], checkpoint=checkpoint, workdir=workdir)
    events = local.events(device=device, data_dir=settings().datasets_dir)
    with terminal.Bars() as bars:
        bars.follow(bars.add(recipe), (Event(e.kind, e.model_dump(mode="json")) for e in events))
    console.print(f"everything it left is in {local.workdir}")
