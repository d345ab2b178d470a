"""`dklbench workers`, `drain` and `resume`: who does the work."""

from typing import Annotated

import typer
from rich.markup import escape

from service.options import Json, Url, client_of
from service.terminal import console, say, show_json

app = typer.Typer()

WorkerName = Annotated[str, typer.Argument(metavar="NAME", help="A worker's name, see `dklbench workers`.")]


@app.command()
def workers(url: Url = None, as_json: Json = False) -> None:
    """List the workers and what they are at."""
    from service.terminal_tables import workers_table

    with client_of(url) as client:
        found = client.workers()
    if as_json:
        show_json({"workers": found})
    else:
        console.print(workers_table(found) if found else "no worker has been heard of; jobs wait for one")


@app.command()
def drain(name: WorkerName, url: Url = None, as_json: Json = False) -> None:
    """Let a worker finish what it has and take nothing more."""
    with client_of(url) as client:
        worker = client.drain_worker(name)
    has = f"; it still has {', '.join(worker['jobs'])}" if worker["jobs"] else " and may be stopped"
    if as_json:
        show_json(worker)
    else:
        say(f"worker {escape(name)} takes nothing more{has}")


@app.command()
def resume(name: WorkerName, url: Url = None, as_json: Json = False) -> None:
    """Let a drained worker take jobs again."""
    with client_of(url) as client:
        worker = client.resume_worker(name)
    if as_json:
        show_json(worker)
    else:
        say(f"worker {escape(name)} takes jobs again")
