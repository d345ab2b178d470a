"""Arguments and options that several commands share."""

from typing import Annotated

import typer

from service.client import Client
from service.settings import settings

Recipe = Annotated[str, typer.Argument(help="A recipe's name, see `dklbench recipes`.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Changes to it, such as epochs=2 threat.eps=4/255.", metavar="PATH=VALUE..."),
]
Url = Annotated[str | None, typer.Option(help="The service to talk to; default: DKLBENCH_URL, or this machine's.")]
JobId = Annotated[str, typer.Argument(help="A job's id, see `dklbench jobs`.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]


def client_of(url: str | None) -> Client:
    """A client of the service at `url`, or of the settings' one."""
    return Client(url or settings().url)
