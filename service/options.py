"""Arguments and options that several commands share."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from service.client import Client
from service.settings import settings

if TYPE_CHECKING:  # imported where it is needed: no other command waits for it
    from sqlalchemy import Engine

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
    return Client(url or settings().url, settings().key.get_secret_value())


@contextmanager
def database() -> Iterator["Engine"]:
    """The database of the settings. A file on this machine may not be there yet; a server was migrated before."""
    from sqlalchemy.exc import ArgumentError, OperationalError, ProgrammingError

    from service import db

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
