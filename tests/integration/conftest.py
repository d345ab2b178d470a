"""Services as processes, for the tests that kill them; and the command line."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from commands import Answer, Command
from processes import BIN, Processes, Start, answers, free_port, quick_settings, wait_until

from service import cli
from service.client import Client
from service.settings import Settings
from service.settings import settings as chosen


@pytest.fixture
def here(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The commands of this process find the test's settings, and leave files in its folder."""
    monkeypatch.chdir(tmp_path)
    for variable, value in {"COLUMNS": "200", **settings.as_environment()}.items():
        monkeypatch.setenv(variable, value)
    chosen.cache_clear()
    yield
    chosen.cache_clear()


@pytest.fixture
def dklbench(here: None, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line with the test's settings, on a terminal of 200 columns."""

    def run(*words: object) -> Answer:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([str(word) for word in words])
        assert isinstance(ended.value.code, int)
        return Answer(ended.value.code, *capsys.readouterr())

    return run


def _processes(folder: Path) -> Iterator[Processes]:
    log_dir = folder / "logs"
    log_dir.mkdir()
    running = Processes(log_dir)
    yield running
    running.end()
    print(running.output())  # pytest shows it where the test failed


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    yield from _processes(tmp_path)


@pytest.fixture(scope="module")
def lasting_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """For what the tests of a file share."""
    yield from _processes(tmp_path_factory.mktemp("lasting"))


@pytest.fixture(scope="module")
def shared_embedded(
    lasting_processes: Processes, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Settings, Client]]:
    """One `dklbench up` for the tests of a file that leave it as they found it: its settings, and a client."""
    own = quick_settings(tmp_path_factory.mktemp("data"))
    port = free_port()
    command = (str(BIN / "dklbench"), "up", "--port", str(port))
    process = lasting_processes.start(*command, environment=own.as_environment())
    with Client(f"http://127.0.0.1:{port}") as client:
        wait_until(lambda: process.poll() is not None or answers(client), what="the service")
        yield own, client


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
