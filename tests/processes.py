"""Real processes for the tests that kill them."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from service.client import Client, ServiceError
from service.settings import Settings

BIN = Path(sys.executable).parent
Start = Callable[[], tuple[subprocess.Popen[bytes], Client]]
"""Starts a service as a process and returns it with a client."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], object], seconds: float = 120, what: str = "") -> None:
    """Poll until the condition holds; the generous limit is only there to end a broken test."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:g} s for {what or condition}"
        time.sleep(0.05)


def quick_settings(data_dir: Path) -> Settings:
    """Embedded mode in a folder of its own, with quick beats."""
    return Settings(
        data_dir=data_dir,
        database_url="",
        broker_url="",
        device="cpu",
        lease_seconds=4,
        heartbeat_seconds=1,
        sweep_seconds=0.3,
        resend_seconds=2,
        anonymous="submit",
        allowed_hosts=("testserver",),
        requests_per_minute=100_000,
    )


class Processes:
    """Starts processes in sessions of their own and kills whatever is left at the end."""

    def __init__(self, log_dir: Path) -> None:
        self._log_dir = log_dir
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, *command: str, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        log = self._log_dir / f"process-{len(self._started)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                # One thread: bit-identical results must not depend on how busy the machine is.
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def end(self) -> None:
        for process in self._started:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            process.wait()

    def output(self) -> str:
        """What all of them have printed."""
        return "\n".join(log.read_text(errors="replace") for log in sorted(self._log_dir.glob("*.log")))


def answers(client: Client) -> bool:
    try:
        client.recipes()
    except ServiceError:
        return False
    return True


def in_epoch(client: Client, job_id: str, number: int) -> bool:
    progress = client.job(job_id).document["progress"]
    return bool(progress) and int(progress["phase"].split()[1]) >= number


def ends(client: Client, job_id: str, status: str = "succeeded", seconds: float = 120) -> dict[str, Any]:
    over = {"succeeded", "failed", "canceled"}
    wait_until(lambda: client.job(job_id).status in over, seconds, f"job {job_id} to end")
    job = client.job(job_id).document
    assert job["status"] == status, job["reason"]
    return job
