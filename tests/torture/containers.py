"""Processes as a container manager has them: started anew when they die, and gone when this one is."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock, RLock, Thread
from typing import Literal

import psutil

GRACE = 60
"""Seconds that a stopped container has before it is killed."""


class Container:
    """A process with its children, in a session of its own; started anew when it ends, until it is put down."""

    def __init__(
        self,
        name: str,
        command: list[str],
        log_dir: Path,
        *,
        environment: Mapping[str, str] | None = None,
        user: str | None = None,
    ) -> None:
        self.name = name
        self.starts = 0
        self.late = 0
        """How often it did not end within the grace period, and was killed."""
        self._command, self._environment, self._user = command, environment or {}, user
        self._log = log_dir / f"{name}.log"
        self._lock = RLock()
        self._wanted = False
        self._process: subprocess.Popen[bytes] | None = None
        Thread(target=self._watch, name=f"watch over {name}", daemon=True).start()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        with self._lock:
            self._wanted = True
            self._launch()

    def kill(self) -> None:
        """The power goes: nothing in it gets another word."""
        _signal_session(self.pid, signal.SIGKILL)

    def freeze(self, seconds: float) -> None:
        """Its processes do nothing for a while, and then go on as if no time had passed."""
        pid = self.pid
        _signal_session(pid, signal.SIGSTOP)
        time.sleep(seconds)
        _signal_session(pid, signal.SIGCONT)

    def restart(self) -> None:
        """As `docker restart` does: SIGTERM to its first process, a grace period, SIGKILL; and a new start."""
        process = self._process
        assert process is not None
        with suppress(ProcessLookupError):
            process.terminate()
        self._end(process)

    def down(self, sign: int = signal.SIGTERM) -> None:
        """The same without the new start; `start` brings it back."""
        with self._lock:
            self._wanted = False
            process = self._process
        if process is not None:
            process.send_signal(sign)
            self._end(process)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.late += 1
        _signal_session(process.pid, signal.SIGKILL)  # a container ends with its first process
        process.wait()

    def _watch(self) -> None:
        while True:
            time.sleep(0.2)
            with self._lock:
                if self._wanted and not self.running:
                    _signal_session(self.pid, signal.SIGKILL)
                    time.sleep(0.5)
                    self._launch()

    def _launch(self) -> None:
        self.starts += 1
        if self._process is not None:
            REAPER.forget("session", self._process.pid)
        with self._log.open("ab") as output:
            output.write(f"\n--- start {self.starts} of {self.name}\n".encode())
            output.flush()
            self._process = subprocess.Popen(
                self._command,
                env={**os.environ, "OMP_NUM_THREADS": "1", **self._environment},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=self._user,
                group=self._user,
                extra_groups=[] if self._user else None,
            )
        REAPER.watch("session", self._process.pid)


def _signal_session(pid: int, sign: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, sign)


class _Reaper:
    """A process that ends what was started here when this process is gone, however it went."""

    _PROGRAM = """
import os, signal, subprocess, sys
known = set()
for line in sys.stdin:  # ends with the process at the other end
    verb, _, what = line.strip().partition(" ")
    known.add(what) if verb == "watch" else known.discard(what)
for what in sorted(known, reverse=True):  # sessions before mounts
    kind, _, name = what.partition(" ")
    if kind == "mount":
        subprocess.run(["umount", "--lazy", name], stderr=subprocess.DEVNULL)
        continue
    try:
        os.killpg(int(name), signal.SIGKILL)
    except ProcessLookupError:
        pass
"""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = Lock()

    def watch(self, kind: Literal["session", "mount"], what: object) -> None:
        self._tell(f"watch {kind} {what}")

    def forget(self, kind: Literal["session", "mount"], what: object) -> None:
        self._tell(f"forget {kind} {what}")

    def _tell(self, line: str) -> None:
        with self._lock:
            if self._process is None:
                command = [sys.executable, "-c", self._PROGRAM]
                self._process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)
            assert self._process.stdin is not None
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()


REAPER = _Reaper()


def processes_with(variable: str, value: str) -> list[psutil.Process]:
    """Every process on this machine that has this in its environment, but for this one."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(variable) == value and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found
