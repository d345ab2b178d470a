"""`dklbench up`, `demo` and `migrate`: the service itself."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from service.options import database
from service.terminal import console, say

if TYPE_CHECKING:
    from service.settings import Settings

app = typer.Typer()

Host = Annotated[str | None, typer.Option(help="Address to listen on.")]
Port = Annotated[int | None, typer.Option(help="Port to listen on.")]


@app.command()
def up(host: Host = None, port: Port = None) -> None:
    """Serve this machine: web pages, REST interface and a worker per GPU, until Ctrl-C."""
    from service import logs
    from service.embedded import embedded

    chosen = _settings(host, port)
    logs.configure(chosen, level=logging.WARNING)
    with embedded(chosen) as server:
        say(f"dkl-bench at [bold]{_url(chosen)}[/], data in {escape(str(chosen.data_dir))}; Ctrl-C stops")
        server.run()


@app.command()
def demo(
    host: Host = None,
    port: Port = None,
    exit: Annotated[bool, typer.Option("--exit", help="Stop when the story is told.")] = False,
) -> None:
    """Train a natural and an adversarially trained model on digits, attack both, and show the ranking."""
    from service import logs
    from service.client import Client
    from service.demo import tell_the_story
    from service.embedded import free_port

    chosen = _settings(host, port)
    if port is None:
        chosen = chosen.model_copy(update={"port": free_port(chosen)})
    logs.configure(chosen, level=logging.WARNING)
    url = _url(chosen)
    try:
        with served(chosen):
            console.print(
                f"Two small models learn handwritten digits, one of them adversarially; watch at {url}/jobs"
            )
            with Client(url) as client:
                tell_the_story(client)
            console.print(f"The leaderboard: [bold]{url}[/]" + ("" if exit else "   (Ctrl-C stops)"))
            while not exit:
                time.sleep(3600)
    except KeyboardInterrupt:
        console.print("stopped; what is unfinished resumes at the next start")


@app.command()
def migrate() -> None:
    """Bring the database to the newest schema. `up` does it by itself."""
    from service import db

    with database() as engine:
        db.migrate(engine)


def _settings(host: str | None, port: int | None) -> "Settings":
    from service.settings import settings

    given = {name: value for name, value in {"host": host, "port": port}.items() if value is not None}
    return settings().model_copy(update=given)


def _url(chosen: "Settings") -> str:
    host = "127.0.0.1" if chosen.host in {"0.0.0.0", "::"} else chosen.host
    return f"http://{host}:{chosen.port}"


@contextmanager
def served(chosen: "Settings") -> Iterator[None]:
    """The embedded service in the background."""
    from service.embedded import StartError, embedded

    with embedded(chosen) as server:
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        try:
            while not server.started:
                if not thread.is_alive():
                    raise StartError("the server did not start; its message is above")
                time.sleep(0.05)
            yield
        finally:
            server.stop()
            thread.join()
