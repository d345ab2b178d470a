"""`dklbench doctor`, `worker-health` and `serve`: for whoever runs the service."""

import logging
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from service.options import Json
from service.terminal import arriving, say, show_json

if TYPE_CHECKING:
    from sqlalchemy import Engine

app = typer.Typer()
_COLOURS = {"ok": "green", "info": "dim", "warning": "yellow", "error": "red"}


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what is wrong with this installation, and what to do. Exit code 1 where something is."""
    from dataclasses import asdict

    from service.doctor import examine
    from service.settings import settings

    findings = []
    for finding in arriving(examine(settings(), _database()), "examining this installation"):
        findings.append(finding)
        if not as_json:
            colour = _COLOURS[finding.level]
            say(
                f"[{colour}]{finding.level:8}[/]{finding.check:12}{escape(finding.says)}"
                + (f"\n{'':20}[bold]->[/] {escape(finding.fix)}" if finding.fix else "")
            )
    well = not any(finding.bad for finding in findings)
    if as_json:
        show_json({"ok": well, "findings": [asdict(finding) for finding in findings]})
    raise typer.Exit(0 if well else 1)


@app.command()
def worker_health() -> None:
    """Exit with 0 if a worker of this host, or container, has beaten within its lease. For health checks."""
    import socket

    from sqlalchemy import select
    from sqlalchemy.exc import SQLAlchemyError

    from service.db import now, reading
    from service.settings import settings
    from service.tables import Worker

    host, lease = socket.gethostname(), settings().lease_seconds
    alive = select(Worker.name).where(Worker.host == host, Worker.beat_at > now() - lease).limit(1)
    try:
        with reading(_database()) as session:
            name = session.scalars(alive).first()
    except SQLAlchemyError:
        raise ValueError("the database does not answer, so no worker can beat either") from None
    if name is None:
        raise ValueError(f"no worker of host {host} has beaten within the last {lease:g} s")
    say(f"{escape(name)} is alive")


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
) -> None:
    """Serve web pages and REST interface alone, for workers elsewhere; `up` has its own. The database must be
    migrated."""
    import uvicorn

    from service import logs
    from service.app import create_app
    from service.embedded import Server
    from service.settings import settings

    given = {name: value for name, value in {"host": host, "port": port}.items() if value is not None}
    chosen = settings().model_copy(update=given)
    logs.configure(chosen)
    _require_schema()
    config = uvicorn.Config(
        create_app(chosen),
        host=chosen.host,
        port=chosen.port,
        log_config=None,  # ours is in place
        access_log=False,  # service/observed.py says it
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    Server(config).run()


def _require_schema() -> None:
    """Refuse a database of another version. One that is away is waited for: until then the answer is 503."""
    from sqlalchemy.exc import SQLAlchemyError

    from service.db import require_schema

    db = _database()
    try:
        require_schema(db)
    except SQLAlchemyError:
        logging.getLogger(__name__).warning("the database does not answer yet; serving without it until it does")
    finally:
        db.dispose()


def _database() -> "Engine":
    """The settings' database; a host that does not answer costs seconds, not minutes."""
    from sqlalchemy import make_url

    from service.db import connect
    from service.settings import settings

    url = make_url(settings().database)
    if url.get_backend_name() == "postgresql" and "connect_timeout" not in url.query:
        url = url.update_query_dict({"connect_timeout": "5"})
    return connect(url.render_as_string(hide_password=False))
