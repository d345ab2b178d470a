"""`dklbench submit`, `watch`, `log`, `cancel`, `resume-job`, `rerun`, `replay`, `jobs`, `leaderboard`, `workers`,
`drain` and `resume`: what is asked of a running service."""

import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.markup import escape

from dkl.catalog import parse_overrides
from service import terminal
from service.client import Client
from service.options import JobId, Overrides, Recipe, Url, client_of
from service.terminal import console

app = typer.Typer()

Watch = Annotated[bool, typer.Option("--watch", help="Stay and draw its progress.")]
WorkerName = Annotated[str, typer.Argument(metavar="NAME", help="A worker's name, see `dklbench workers`.")]


@app.command()
def submit(
    recipe: Recipe,
    overrides: Overrides = None,
    url: Url = None,
    top: Annotated[
        int | None,
        typer.Option(metavar="K", help="Stop an evaluation once its model cannot be among its board's best K."),
    ] = None,
    then: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RECIPE",
            help="An evaluation of the model that this makes, or a distillation from it, queued with it; with "
            'changes to it in quotes: "RECIPE images=100".',
        ),
    ] = None,
    queue: Annotated[str | None, typer.Option(help="Default: the service's first.")] = None,
    priority: Annotated[int, typer.Option(min=-100, max=100, help="Higher ones first.")] = 0,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs that its worker must have.")] = 0,
    gpu_memory: Annotated[float, typer.Option(min=0, metavar="GIB", help="That each of them must have.")] = 0.0,
    webhook: Annotated[
        str | None, typer.Option(metavar="URL", help="An https address to tell when it has ended.")
    ] = None,
    watch: Watch = False,
) -> None:
    """Queue a job. An evaluation needs its model, a distillation its teacher: model.job=ID or
    teacher.job=ID of a training job."""
    with client_of(url) as client:
        job = client.submit(
            recipe, parse_overrides(overrides or []), top_k=top, queue=queue, priority=priority, gpus=gpus,
            gpu_memory=gpu_memory, webhook=webhook, then=[_next(words) for words in then or []],
        )  # fmt: skip
        for queued in (job, *job["then"]):
            _say_queued(client, queued)
        if top is not None:
            below = job["recipe"]["stop_below"]
            console.print(
                f"its board has fewer than {top} rows, so nothing stops it"
                if below is None
                else f"it stops once its robust accuracy is certain to be below {below:.2%}"
            )
        if watch:
            for queued in (job, *job["then"]):
                _watch(client, queued)


def _next(words: str) -> tuple[str, dict[str, Any]]:
    """What --then says: a recipe's name, then changes to it, which hold no spaces."""
    name, *overrides = words.split() or [""]
    return name, parse_overrides(overrides)


def _say_queued(client: Client, job: dict[str, Any]) -> None:
    what = f", {job['name'] or job['kind']}," if job["parent_id"] or job["rerun_of"] else ""
    console.print(f"job [bold]{job['id']}[/]{what} is queued: {client.url}/jobs/{job['id']}", soft_wrap=True)


@app.command(name="watch")
def watch_job(job_id: JobId, url: Url = None) -> None:
    """Draw a job's progress until it ends."""
    with client_of(url) as client:
        _watch(client, client.job(job_id))


@app.command(name="log")
def show_log(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay until the job ends.")] = False,
    url: Url = None,
) -> None:
    """Print what a job has said, a line per event."""
    with client_of(url) as client:
        for part in _lines(client, job_id) if follow else client.log(job_id):
            print(part, end="", flush=True)


def _lines(client: Client, job_id: str) -> Iterator[str]:
    """Of the job's log, until it ends."""
    from service.web.joblog import Said, lines  # imports the tables

    said = (Said(e.id, e.data["at"], e.data["attempt"], e.kind, e.data) for e in client.watch(job_id) if e.id)
    for line in lines(said):
        yield f"{line}\n"


def _watch(client: Client, job: dict[str, Any]) -> None:
    if _draw(client, job) != "succeeded":
        raise typer.Exit(1)


def _draw(client: Client, job: dict[str, Any]) -> str:
    """Draw the job's progress until it ends; its last status."""
    with terminal.Bars(epochs=True) as bars:
        return bars.follow(bars.add(job["name"] or job["kind"]), client.watch(job["id"]))


@app.command()
def cancel(job_id: JobId, url: Url = None) -> None:
    """End a job."""
    with client_of(url) as client:
        console.print(f"job {job_id} is {client.cancel(job_id)['status']}")


@app.command()
def resume_job(job_id: JobId, url: Url = None, watch: Watch = False) -> None:
    """Let a job that failed or was canceled go on."""
    with client_of(url) as client:
        job = client.resume_job(job_id)
        console.print(f"job {job_id} is {job['status']} again")
        if watch:
            _watch(client, job)


@app.command()
def rerun(job_id: JobId, url: Url = None, watch: Watch = False) -> None:
    """Run an ended job again, as a new one."""
    with client_of(url) as client:
        job = client.rerun(job_id)
        _say_queued(client, job)
        if watch:
            _watch(client, job)


@app.command()
def replay(
    job_id: JobId,
    run: Annotated[
        str | None, typer.Option(metavar="ID", help="Compare with this run of it instead of starting a new one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as one JSON object.")] = False,
    url: Url = None,
) -> None:
    """Run a finished job again and compare what it finds. Exit code 0 only if the result is the same."""
    from service.replay import replay, shown

    with client_of(url) as client:

        def follow(job: dict[str, Any]) -> None:
            if as_json:
                for _ in client.watch(job["id"]):
                    pass
                return
            if run is None:
                _say_queued(client, job)
                console.print(f"to compare later: dklbench replay {job_id} --run {job['id']}", soft_wrap=True)
            _draw(client, job)

        report = replay(client, job_id, run=run, follow=follow)
    if as_json:
        print(json.dumps(report.document()))
    else:
        console.print(shown(report))
    if not report.same:
        raise typer.Exit(1)


@app.command()
def jobs(url: Url = None) -> None:
    """List the newest jobs."""
    with client_of(url) as client:
        console.print(terminal.jobs_table(client.jobs()))


@app.command()
def leaderboard(
    dataset: Annotated[str | None, typer.Option(help="digits, cifar10, ...")] = None,
    threat_model: Annotated[str | None, typer.Option(help="Linf, L2, L1 or corruptions.")] = None,
    page: Annotated[int, typer.Option(min=1, help="Of fifty rows each.")] = 1,
    url: Url = None,
) -> None:
    """Show the ranking."""
    asked = {"dataset": dataset, "threat_model": threat_model, "page": page}
    query = {name: value for name, value in asked.items() if value}
    with client_of(url) as client:
        console.print(terminal.leaderboard_table(client.leaderboard(**query)))


# --- workers ----------------------------------------------------------------------------------------------


@app.command()
def workers(url: Url = None) -> None:
    """List the workers and what they are at."""
    with client_of(url) as client:
        found = client.workers()
    console.print(terminal.workers_table(found) if found else "no worker has been heard of; jobs wait for one")


@app.command()
def drain(name: WorkerName, url: Url = None) -> None:
    """Let a worker finish what it has and take nothing more."""
    with client_of(url) as client:
        worker = client.drain(name)
    has = f"; it still has {', '.join(worker['jobs'])}" if worker["jobs"] else " and may be stopped"
    console.print(f"worker {escape(name)} takes nothing more{has}")


@app.command()
def resume(name: WorkerName, url: Url = None) -> None:
    """Let a drained worker take jobs again."""
    with client_of(url) as client:
        client.resume(name)
    console.print(f"worker {escape(name)} takes jobs again")
