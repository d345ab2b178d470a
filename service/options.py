"""Arguments and options that several commands share."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service import completion

if TYPE_CHECKING:  # imported where it is needed: no other command waits for it
    from sqlalchemy import Engine

    from service.client import Client

Recipe = Annotated[
    str, typer.Argument(help="A recipe's name, see `dklbench recipes`.", autocompletion=completion.recipes)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Changes to it, such as epochs=2 threat.eps=4/255.", metavar="PATH=VALUE..."),
]
Url = Annotated[str | None, typer.Option(help="The service to talk to; default: DKLBENCH_URL, or this machine's.")]
JobId = Annotated[
    str, typer.Argument(help="A job's id, see `dklbench jobs`.", autocompletion=completion.jobs, metavar="JOB")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object, for programs.")]
JsonLines = Annotated[bool, typer.Option("--json", help="Print one JSON object per line, for programs.")]
Watch = Annotated[bool, typer.Option("--watch", help="Stay and draw its progress; exit code 1 if it fails.")]
Architecture = Annotated[
    str | None,
    typer.Option(
        metavar="KIND",
        help='The network, with its size in quotes: "wide-resnet depth=28 width=10"; or as recipes have it: '
        '{"kind": "wide-resnet", ...}. A checkpoint of ours says it itself.',
        autocompletion=completion.architectures,
    ),
]
Dataset = Annotated[
    str | None,
    typer.Option(
        help="What it was trained on: cifar10, npz:mine, ... A checkpoint of ours says it itself.",
        autocompletion=completion.datasets,
    ),
]
Entry = Annotated[str | None, typer.Option(help="The state dict to take, if the file holds several.")]


def architecture_of(text: str) -> dict[str, Any]:
    """The document that --architecture describes, which is not checked yet: JSON, or a kind and what to change of
    it: "wide-resnet depth=28 width=10"."""
    import json

    from dkl.catalog import parse_overrides

    if text.lstrip().startswith("{"):
        try:
            return dict(json.loads(text))
        except json.JSONDecodeError as error:
            raise ValueError(
                f'--architecture is not JSON ({error}); write such as \'{{"kind": "resnet"}}\', or '
                '"wide-resnet depth=28 width=10"'
            ) from None
    kind, *changes = text.split() or [""]
    document: dict[str, Any] = {"kind": kind}
    for path, value in parse_overrides(changes).items():
        *outer, last = path.split(".")
        place = document
        for step in outer:
            place[step] = place = place[step] if isinstance(place.get(step), dict) else {}
        place[last] = value
    return document


def client_of(url: str | None, *, timeout: float = 30) -> "Client":
    """A client of the service at `url`, or of the settings' one."""
    from service.client import Client
    from service.settings import settings

    return Client(url or settings().url, settings().key.get_secret_value(), timeout=timeout)


@contextmanager
def database() -> Iterator["Engine"]:
    """The database of the settings. A file on this machine may not be there yet; a server was migrated before."""
    from sqlalchemy.exc import ArgumentError, OperationalError, ProgrammingError

    from service import db
    from service.settings import settings

    try:
        engine = db.connect(settings().database)
    except ArgumentError:
        raise ValueError("DKLBENCH_DATABASE_URL must read like postgresql://user:password@host/name") from None
    try:
        if not settings().database_url:
            db.migrate(engine)
        yield engine
    except (OperationalError, ProgrammingError) as error:
        what = str(error.orig).partition("\n")[0]
        raise ConnectionError(f"the database is away, or `dklbench migrate` has not run in it ({what})") from None
    finally:
        engine.dispose()
