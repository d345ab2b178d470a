"""`dklbench upload`: one's own weights into a service, as a job that checks them."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from dkl.catalog import named, parse_overrides
from dkl.datasets import check_name
from dkl.explain import read_recipe
from dkl.protocols import AnyProtocol
from service import terminal
from service.client import Client
from service.options import Url, client_of
from service.terminal import console

app = typer.Typer()


@app.command()
def upload(
    file: Annotated[Path, typer.Argument(help="Weights: .safetensors, or what torch.save wrote.", metavar="FILE")],
    architecture: Annotated[
        str,
        typer.Option(
            "--architecture",
            "--model",
            metavar="KIND",
            help='The network they are of: wide-resnet, ..., or as recipes have it: {"kind": "wide-resnet", ...}.',
        ),
    ],
    dataset: Annotated[str, typer.Option(help="What it was trained on: cifar10, npz:mine, ...")],
    changes: Annotated[
        list[str] | None,
        typer.Argument(help="The network's size and such: depth=28 width=10.", metavar="PATH=VALUE..."),
    ] = None,
    entry: Annotated[str | None, typer.Option(help="The state dict to take, if the file holds several.")] = None,
    evaluate: Annotated[
        str | None, typer.Option(metavar="RECIPE", help="Then judge it: autoattack-cifar10-linf, ...")
    ] = None,
    url: Url = None,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until it is over, and draw its progress.")] = False,
) -> None:
    """Send weights to the service, which checks them and makes a checkpoint of them. Nothing in them is run.

    The file is taken as it is: a state dict, or what a training script keeps one in.
    """
    if not file.is_file():
        raise ValueError(f"there is no file {file}")
    document = {
        "kind": "import",
        "upload": "0" * 64,  # until it is sent: what else is wrong is better known before
        "dataset": check_name(dataset),
        "model": _architecture(architecture, changes or []),
        "entry": entry,
    }
    read_recipe(document)
    if evaluate is not None and not isinstance(named(evaluate).recipe, AnyProtocol):
        raise ValueError(
            f"{evaluate} trains a model of its own; name an evaluation, see: dklbench recipes autoattack"
        )
    with client_of(url) as client:
        job = client.submit_recipe({**document, "upload": _sent(client, file)})
        console.print(f"job [bold]{job['id']}[/] checks it: {client.url}/jobs/{job['id']}")
        jobs = [job]
        if evaluate is not None:
            jobs.append(client.submit(evaluate, {"model": {"job": job["id"]}}))
            console.print(f"job [bold]{jobs[1]['id']}[/] judges it then: {client.url}/jobs/{jobs[1]['id']}")
        if wait:
            _wait(client, jobs)


def _architecture(text: str, changes: list[str]) -> dict[str, Any]:
    """The document that --architecture, a kind or JSON, and the changes to it describe; it is not checked yet."""
    try:
        document = json.loads(text) if text.lstrip().startswith("{") else {"kind": text}
    except json.JSONDecodeError as error:
        raise ValueError(f'--architecture is not JSON ({error}); write such as \'{{"kind": "resnet"}}\'') from None
    for path, value in parse_overrides(changes).items():
        *outer, last = path.split(".")
        place = document
        for step in outer:
            place[step] = place = place[step] if isinstance(place.get(step), dict) else {}
        place[last] = value
    return dict(document)


def _sent(client: Client, file: Path) -> str:
    """The sha256 of the file, which the service has now."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=28), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console) as bars:
        bar = bars.add_task(f"sending {escape(file.name)}", total=None)
        sent = client.upload(file, lambda done, total: bars.update(bar, completed=done, total=total))
    return str(sent["sha256"])


def _wait(client: Client, jobs: list[dict[str, Any]]) -> None:
    with terminal.Bars(epochs=True) as bars:
        for job in jobs:
            status = bars.follow(bars.add(job["name"] or job["kind"]), client.watch(job["id"]))
            if status != "succeeded":
                raise ValueError(client.job(job["id"])["reason"] or f"job {job['id']} is {status}")
