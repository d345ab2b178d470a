"""`dklbench submit`, `watch`, `cancel`, `jobs` and `leaderboard`: what is asked of a running service."""

from typing import Annotated, Any

import typer

from dkl.catalog import parse_overrides
from service import terminal
from service.client import Client
from service.options import JobId, Overrides, Recipe, Url, client_of
from service.terminal import console

app = typer.Typer()


@app.command()
def submit(
    recipe: Recipe,
    overrides: Overrides = None,
    url: Url = None,
    top: Annotated[
        int | None,
        typer.Option(metavar="K", help="Stop an evaluation once its model cannot be among its board's best K."),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Stay and draw its progress.")] = False,
) -> None:
    """Queue a job. An evaluation needs its model: model.job=ID of a training job."""
    with client_of(url) as client:
        job = client.submit(recipe, parse_overrides(overrides or []), top_k=top)
        console.print(f"job [bold]{job['id']}[/] is queued: {client.url}/jobs/{job['id']}")
        if top is not None:
            below = job["recipe"]["stop_below"]
            console.print(
                f"its board has fewer than {top} rows, so nothing stops it"
                if below is None
                else f"it stops once its robust accuracy is certain to be below {below:.2%}"
            )
        if watch:
            _watch(client, job)


@app.command(name="watch")
def watch_job(job_id: JobId, url: Url = None) -> None:
    """Draw a job's progress until it ends."""
    with client_of(url) as client:
        _watch(client, client.job(job_id))


def _watch(client: Client, job: dict[str, Any]) -> None:
    with terminal.Bars(epochs=True) as bars:
        status = bars.follow(bars.add(job["name"] or job["kind"]), client.watch(job["id"]))
    if status != "succeeded":
        raise typer.Exit(1)


@app.command()
def cancel(job_id: JobId, url: Url = None) -> None:
    """End a job."""
    with client_of(url) as client:
        console.print(f"job {job_id} is {client.cancel(job_id)['status']}")


@app.command()
def jobs(url: Url = None) -> None:
    """List the newest jobs."""
    with client_of(url) as client:
        console.print(terminal.jobs_table(client.jobs()))


@app.command()
def leaderboard(
    dataset: Annotated[str | None, typer.Option(help="digits, cifar10, ...")] = None,
    norm: Annotated[str | None, typer.Option(help="Linf, L2 or L1.")] = None,
    url: Url = None,
) -> None:
    """Show the ranking."""
    query = {name: value for name, value in {"dataset": dataset, "norm": norm}.items() if value}
    with client_of(url) as client:
        console.print(terminal.leaderboard_table(client.leaderboard(**query)))
