"""Services as processes, for the tests that kill them."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from processes import BIN, Processes, Start, answers, free_port, wait_until

from service.client import Client
from service.settings import Settings


@pytest.fixture
def processes(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Processes]:
    log_dir = tmp_path / "logs"
    log_dir.mkdir()
    running = Processes(log_dir)
    yield running
    running.end()
    print(running.output())  # pytest shows it where the test failed


@pytest.fixture
def start_embedded(processes: Processes, settings: Settings) -> Iterator[Start]:
    """`dklbench up` as a process of its own, and a client of it."""
    port = free_port()
    clients = ExitStack()

    def start() -> tuple[subprocess.Popen[bytes], Client]:
        process = processes.start(
            str(BIN / "dklbench"), "up", "--port", str(port), environment=settings.as_environment()
        )
        client = clients.enter_context(Client(f"http://127.0.0.1:{port}"))
        wait_until(lambda: process.poll() is not None or answers(client), what="the service")
        return process, client

    with clients:
        yield start
