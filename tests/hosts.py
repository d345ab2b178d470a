"""Hosts with a network between them, as network namespaces of this machine: cables that can be pulled."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

_NAMESPACES = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


def why_not() -> str | None:
    """Why this machine cannot do it; None where it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "no `ip` here: apt-get install iproute2"
    probe = f"dkl{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"this machine lets nobody make network namespaces: {made.stderr.strip()}"
    _ip("netns", "del", probe)
    return None


class Network:
    """A switch with hosts: 10.77.0.1, .2, ... Nothing of it touches this machine's own network."""

    def __init__(self, names: list[str]) -> None:
        self._prefix = f"dkl{os.getpid()}-"
        self._names = names
        self.address = {name: f"10.77.0.{number}" for number, name in enumerate(names, start=1)}

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            self._build(undo)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _build(self, undo: ExitStack) -> None:
        switch = self._namespace("switch", undo)
        _ip("-n", switch, "link", "add", "name", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for name in self._names:
            host = self._namespace(name, undo)
            pair = ("type", "veth", "peer", "name", "eth0", "netns", host)
            _ip("-n", switch, "link", "add", "name", f"port-{name}", *pair)
            _ip("-n", host, "address", "add", f"{self.address[name]}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                _ip("-n", host, "link", "set", link, "up")
            _ip("-n", switch, "link", "set", f"port-{name}", "up")
            self.plug(name)

    def unplug(self, name: str) -> None:
        """From now on nothing reaches the host and nothing leaves it, and nobody is told."""
        _ip("-n", f"{self._prefix}switch", "link", "set", f"port-{name}", "nomaster")

    def plug(self, name: str) -> None:
        _ip("-n", f"{self._prefix}switch", "link", "set", f"port-{name}", "master", "bridge")

    def on(self, name: str, *command: str) -> tuple[str, ...]:
        """The command, to be run on the host."""
        return ("ip", "netns", "exec", self._prefix + name, *command)

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """This thread, and whatever it starts, is on the host."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(_NAMESPACES / (self._prefix + name), os.O_RDONLY)
        try:
            _enter(there)
            yield
        finally:
            _enter(before)
            os.close(there)
            os.close(before)

    def _namespace(self, name: str, undo: ExitStack) -> str:
        _ip("netns", "add", self._prefix + name)
        undo.callback(_ip, "netns", "del", self._prefix + name)
        return self._prefix + name


def _enter(descriptor: int) -> None:
    if _LIBC.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "cannot change the network namespace")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
