"""A service in this process, without workers: what it is asked reaches its ledger, and a test plays the worker."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from sqlalchemy import Engine

from service.app import create_app
from service.client import Client
from service.db import migrate
from service.settings import Settings
from service.state import State


@contextmanager
def served(settings: Settings, port: int = 0) -> Iterator[tuple[Client, Engine]]:
    """A client of a service without workers, and its ledger."""
    with served_state(settings, port) as (client, state):
        yield client, state.db


@contextmanager
def served_state(settings: Settings, port: int = 0) -> Iterator[tuple[Client, State]]:
    """The same with all that its routes share."""
    application = create_app(settings)
    state: State = application.state.dkl
    migrate(state.db)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        server = uvicorn.Server(uvicorn.Config(application, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.02)
        with Client(f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
            yield client, state
        state.streams.close()
        server.should_exit = True
        thread.join(20)
