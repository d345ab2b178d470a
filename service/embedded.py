"""One machine, no servers: migrate the SQLite ledger, keep a worker per GPU alive, serve the web application."""

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from ipaddress import ip_address

import uvicorn
from filelock import FileLock, Timeout
from sqlalchemy.exc import SQLAlchemyError

from service import healing
from service.app import create_app
from service.callers import Scope
from service.db import connect, migrate
from service.keys import somebody_may
from service.settings import Settings

_log = logging.getLogger(__name__)
_LONGEST_BACKOFF = 30.0


class StartError(ValueError):
    """The service cannot start; the message says what to do."""


class Server(uvicorn.Server):
    """uvicorn that ends open event streams when it should stop, instead of waiting for them, and then returns."""

    def handle_exit(self, sig: int, frame: object) -> None:
        self.force_exit = self.should_exit  # asked twice
        self.stop()

    def stop(self) -> None:
        self.config.app.state.dkl.streams.close()  # type: ignore[union-attr]
        self.should_exit = True


@contextmanager
def embedded(settings: Settings) -> Iterator[Server]:
    """The server, not yet running, with its workers running beside it until the context ends.

    Raises StartError where the data directory is in use, the port is taken, torch is missing or settings
    ask for compose mode.
    """
    if settings.broker_url:
        raise StartError(
            "DKLBENCH_BROKER_URL is set: start `dklbench serve` and Celery workers instead, see docs/operations.md"
        )
    if find_spec("torch") is None:
        raise StartError(
            "the workers need torch, which is not installed here: pip install 'dkl-bench[service,worker]'"
        )
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(settings.data_dir / "service.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StartError(
            f"another dkl-bench already serves {settings.data_dir}; stop it, or set DKLBENCH_DATA_DIR"
        ) from None
    try:
        _check_port(settings)
        _prepare_database(settings)
        workers = [_Worker(settings, gpu) for gpu in _gpus(settings) or [None]]
        try:
            config = uvicorn.Config(
                create_app(settings.model_copy(update={"anonymous": _anonymous(settings)})),
                host=settings.host,
                port=settings.port,
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=5,
            )
            yield Server(config)
        finally:
            for worker in workers:
                worker.halt()
            for worker in workers:
                worker.join()
    finally:
        lock.release()


def _prepare_database(settings: Settings) -> None:
    """Migrated, and with a key where others than this machine's users can ask."""
    db = connect(settings.database)
    try:
        migrate(db)
        if not _is_loopback(settings.host) and not somebody_may(db, "submit", "admin"):
            raise StartError(
                f"others could use this service at {settings.host}, and it has no API key yet; make one first: "
                "dklbench keys create NAME --scope admin"
            )
    finally:
        db.dispose()


def _anonymous(settings: Settings) -> Scope:
    """What one may do without a key: all that users do, where nobody but this machine's can ask."""
    only_here = _is_loopback(settings.host) and not settings.allowed_hosts
    return settings.anonymous or ("submit" if only_here else "leaderboard")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_port(settings: Settings) -> None:
    try:
        _bind(settings.host, settings.port)
    except OSError as error:
        raise StartError(
            f"cannot listen on {settings.host}:{settings.port} ({error.strerror}); choose another --port"
        ) from None


def free_port(settings: Settings) -> int:
    """The port of the settings, or any other where that one is taken."""
    try:
        return _bind(settings.host, settings.port)
    except OSError:
        return _bind(settings.host, 0)


def _bind(host: str, port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        return int(probe.getsockname()[1])


def _gpus(settings: Settings) -> list[str]:
    """The visible GPUs' numbers, asked without importing torch."""
    if settings.cuda_visible_devices is not None:
        return [gpu for gpu in settings.cuda_visible_devices.split(",") if gpu.strip() not in {"", "-1"}]
    if settings.device == "cpu" or shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return answer.stdout.split() if answer.returncode == 0 else []


class _Worker:
    """A worker process that is started again, after a growing pause, for as long as it dies."""

    def __init__(self, settings: Settings, gpu: str | None) -> None:
        self._environment = {
            **os.environ,
            **settings.as_environment(),
            **({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}),
        }
        self._name = f"{socket.gethostname()}/{'cpu' if gpu is None else f'gpu{gpu}'}"
        self._log_path = settings.data_dir / f"worker-{gpu or 'cpu'}.log"
        self._db, self._max_losses = connect(settings.database), settings.max_losses
        self._halting = threading.Event()
        self._process = self._start()
        self._thread = threading.Thread(target=self._keep_alive, daemon=True)
        self._thread.start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log_path.open("ab") as log:
            command = [sys.executable, "-m", "workers", "--parent", str(os.getpid()), "--name", self._name]
            return subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)

    def _keep_alive(self) -> None:
        pause = 1.0
        while not self._halting.is_set():
            started = time.monotonic()
            code = self._process.wait()
            if self._halting.is_set():
                return
            self._give_its_jobs_back()
            pause = 1.0 if time.monotonic() - started > 60 else min(pause * 2, _LONGEST_BACKOFF)
            _log.warning("a worker ended with code %d, see %s; starting another", code, self._log_path)
            self._halting.wait(pause)
            if not self._halting.is_set():
                self._process = self._start()

    def _give_its_jobs_back(self) -> None:
        """What the dead process held need not wait for its lease; where this fails, it does."""
        try:
            healing.requeue_orphaned(self._db, self._name, max_losses=self._max_losses)
        except SQLAlchemyError as error:
            _log.warning("cannot take back what the worker held (%s); its lease will run out", error)

    def halt(self) -> None:
        """Ask the worker to give its job back and stop."""
        self._halting.set()
        self._process.send_signal(signal.SIGTERM)

    def join(self) -> None:
        """Wait until the worker has stopped; after a minute it is killed, and its job resumes later."""
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join()
