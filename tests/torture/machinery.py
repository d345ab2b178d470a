"""PostgreSQL, Redis and a small disk, all of this program's own."""

import ctypes
import io
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import redis
from processes import free_port, wait_until

from torture.containers import REAPER, Container


class Postgres:
    """A cluster of its own. PostgreSQL refuses to run as root, and then runs as another user."""

    def __init__(self, root: Path, log_dir: Path) -> None:
        self.port = free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        binaries = _postgres_binaries()
        home = root / "postgres"
        home.mkdir()
        user = _other_user() if os.geteuid() == 0 else None
        if user:
            shutil.chown(home, user)
        initdb = [
            str(binaries / "initdb"),
            "-D",
            str(home / "data"),
            "-U",
            "postgres",
            "--auth=trust",
            "-E",
            "UTF8",
        ]
        subprocess.run([*initdb, "--no-sync"], check=True, capture_output=True, user=user, cwd=home)
        options = [f"port={self.port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={home}"]
        options += ["max_connections=300", "log_min_messages=warning"]
        command = [str(binaries / "postgres"), "-D", str(home / "data")]
        command += [word for option in options for word in ("-c", option)]
        self.container = Container("postgres", command, log_dir, user=user)

    def start(self) -> None:
        self.container.start()
        wait_until(self._answers, 60, "PostgreSQL")

    def stop(self, mode: str) -> None:
        """As `pg_ctl stop -m` fast or immediate does."""
        self.container.down(signal.SIGINT if mode == "fast" else signal.SIGQUIT)

    def _answers(self) -> bool:
        ready = [str(_postgres_binaries() / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(ready, check=False).returncode == 0


def _postgres_binaries() -> Path:
    """Where the newest PostgreSQL lies; Debian keeps it off the PATH."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    found = debian[-1] if debian else shutil.which("initdb")
    assert found, "PostgreSQL is not installed: apt-get install postgresql"
    return Path(found).parent


def _other_user() -> str:
    return "postgres" if Path("/var/lib/postgresql").is_dir() else "nobody"


class Redis:
    """A broker of its own, with an append-only file as in docker-compose.yml."""

    def __init__(self, root: Path, log_dir: Path) -> None:
        self.port = free_port()
        home = root / "redis"
        home.mkdir()
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(home)]
        self.container = Container("redis", [*command, "--appendonly", "yes", "--save", ""], log_dir)
        self.connection = redis.Redis(port=self.port, socket_timeout=5)

    def start(self) -> None:
        self.container.start()
        wait_until(self._answers, 60, "Redis")

    def _answers(self) -> bool:
        try:
            return bool(self.connection.ping())
        except redis.exceptions.RedisError:
            return False


class Disk:
    """A small file system in memory, which can be full; an ordinary folder where none may be mounted."""

    def __init__(self, path: Path, megabytes: int) -> None:
        self.path = path
        path.mkdir()
        options = f"size={megabytes}m,mode=755".encode()
        self.limited = _LIBC.mount(b"tmpfs", bytes(path), b"tmpfs", 0, options) == 0
        if self.limited:
            REAPER.watch("mount", path)
        self._filler = path / "filler"

    def fill(self) -> None:
        """Write until nothing more fits."""
        with self._filler.open("ab", buffering=0) as file:
            for size in (2**20, 2**12, 1):
                _write_until_full(file, bytes(size))

    def free(self) -> None:
        self._filler.unlink(missing_ok=True)

    def unmount(self) -> None:
        if self.limited:
            _LIBC.umount2(bytes(self.path), _DETACH)
            REAPER.forget("mount", self.path)


_LIBC = ctypes.CDLL(None, use_errno=True)
_DETACH = 2


def _write_until_full(file: io.RawIOBase, piece: bytes) -> None:
    with suppress(OSError):
        while True:
            file.write(piece)


def in_a_namespace_of_its_own() -> None:
    """Start this program again where it may mount something, if it is not root: in a namespace of mounts."""
    unshare = ["unshare", "--map-current-user", "--keep-caps", "--mount"]
    if os.geteuid() == 0 or os.environ.get("TORTURE_NAMESPACE"):
        return
    if subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode == 0:
        os.environ["TORTURE_NAMESPACE"] = "1"
        os.execvp("unshare", [*unshare, sys.executable, "-m", "torture", *sys.argv[1:]])
