"""What a throw-away process can no longer do: use more than its share, reach a network, start programs, see files.

`confine` is called first in it, before anything is imported that starts threads. The limits hold on any Unix.
The rest is Linux's, and each part holds only where the kernel, or a container around it, lets ordinary processes
ask for it; `confine` returns those that do:

namespace   a network of its own without any device in it, and no privileges outside (user namespace)
syscalls    seccomp: no sockets, no programs, no new processes, nothing done to other processes
files       Landlock: it reads the interpreter, its packages and the upload; it writes its own folder; nothing else
hook        always: Python's own audit hook refuses sockets and programs, to Python code only
"""

import ctypes
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_LIBC = ctypes.CDLL(None, use_errno=True)


class Limits(NamedTuple):
    """All in bytes but for the time."""

    address_space: int
    """Everything mapped, files and libraries included: torch's CUDA build takes 3 GiB by being imported."""
    data: int
    """What the process can write to, which is what costs memory."""
    file: int
    """The largest file it may write."""
    cpu_seconds: int


def limit(limits: Limits, *, data_now: int) -> None:
    """Set the limits for good; memory to write to is limited to `data_now` until `raise_data` is called."""
    for kind, most in (
        (resource.RLIMIT_AS, limits.address_space),
        (resource.RLIMIT_FSIZE, limits.file),
        (resource.RLIMIT_CPU, limits.cpu_seconds),
        (resource.RLIMIT_NOFILE, 128),
        (resource.RLIMIT_NPROC, 0),  # no further thread or process; of no effect on root, whom the filter stops
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (least, least))
    resource.setrlimit(resource.RLIMIT_DATA, (min(data_now, limits.data), limits.data))


def raise_data() -> None:
    """Allow as much memory as `limit` was given: the cheap checks are through."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def confine(*, reads: Sequence[Path], writes: Path, parent: int) -> tuple[str, ...]:
    """Give up what is not needed, as the module says, and die with the process `parent`; what is in force."""
    sys.addaudithook(_refuse)
    if not sys.platform.startswith("linux"):
        return ("hook",)
    found = {
        "namespace": _LIBC.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0,
        "files": _see_only(reads, writes),
        "syscalls": _filter_syscalls(),
    }
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before it was watched
        os._exit(1)
    return (*(name for name, holds in found.items() if holds), "hook")


_REFUSED_EVENTS = (
    "socket.",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.system",
    "os.kill",
    "subprocess.",
    "pty.",
)


def _refuse(event: str, _: object) -> None:
    if event.startswith(_REFUSED_EVENTS):
        raise PermissionError(f"{event} has no place in a process that reads an upload")


_CLONE_NEWUSER, _CLONE_NEWNET, _CLONE_THREAD = 0x10000000, 0x40000000, 0x00010000
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38


def _number(number: int) -> ctypes.c_long:
    return ctypes.c_long(number)


# --- files: Landlock --------------------------------------------------------------------------------------

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
"""System calls; the same on every machine."""
_READ = 1 << 0 | 1 << 2 | 1 << 3
"""Execute (which mapping a library is not, but may come to be), read a file, read a folder."""
_ALL = (1 << 13) - 1
"""All that the first version of Landlock knows: those, and writing, removing and making things of every kind."""
_OF_FILES = 1 << 0 | 1 << 1 | 1 << 2
_SYSTEM = (
    "/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/dev/null", "/dev/urandom",
    "/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system",
)  # fmt: skip
"""What interpreters and torch read to find libraries and to count cores."""
_PACKAGES = {"site-packages", "dist-packages"}


def _see_only(reads: Sequence[Path], writes: Path) -> bool:
    """Whether the kernel now refuses all files but these, those of the system and those Python imports from."""
    handled = ctypes.create_string_buffer(struct.pack("=Q", _ALL), 8)
    rules = _LIBC.syscall(_number(_LANDLOCK_CREATE), handled, _number(8), _number(0))
    if rules < 0:
        return False
    packages = [place for place in sys.path if Path(place).name in _PACKAGES]
    imports = [sys.prefix, sys.base_prefix, str(Path(__file__).parent), *packages]
    for place in (*_SYSTEM, *imports, *map(str, reads)):
        _allow(rules, Path(place), _READ)
    _allow(rules, writes, _ALL)
    _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, _number(1), _number(0), _number(0), _number(0))
    done = _LIBC.syscall(_number(_LANDLOCK_RESTRICT), _number(rules), _number(0)) == 0
    os.close(rules)
    return bool(done)


def _allow(rules: int, place: Path, access: int) -> None:
    try:
        descriptor = os.open(place, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # not on this machine
    try:
        access &= _ALL if place.is_dir() else _OF_FILES
        rule = ctypes.create_string_buffer(struct.pack("=Qi", access, descriptor), 12)
        _LIBC.syscall(_number(_LANDLOCK_ADD), _number(rules), _number(1), rule, _number(0))
    finally:
        os.close(descriptor)


# --- system calls: seccomp --------------------------------------------------------------------------------

_REFUSED_CALLS = {
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200),
    "io_uring_setup": (425, 425),
    "execve": (59, 221), "execveat": (322, 281), "fork": (57, None), "vfork": (58, None),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "bpf": (321, 280), "mount": (165, 40),
    "unshare": (272, 97), "setns": (308, 268), "keyctl": (250, 219),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282),
}  # fmt: skip
"""Numbers on x86-64 and on 64-bit ARM, in /usr/include/asm/unistd_64.h and asm-generic/unistd.h."""
_CLONE, _CLONE3, _PRLIMIT = (56, 220), (435, 435), (302, 261)
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Which of the numbers, and the kernel's own name of the machine."""
_ALLOW, _EPERM, _ENOSYS, _KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
_LOAD, _EQUAL, _ABOVE, _BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06


def _filter_syscalls() -> bool:
    """Whether the kernel now refuses the calls above, and those that make processes or limit others."""
    if platform.machine() not in _MACHINES:
        return False
    program = b"".join(struct.pack("=HBBI", *step) for step in _program(*_MACHINES[platform.machine()]))
    steps = ctypes.create_string_buffer(program, len(program))
    described = ctypes.create_string_buffer(struct.pack("HP", len(program) // 8, ctypes.addressof(steps)))
    _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, _number(1), _number(0), _number(0), _number(0))
    return bool(_LIBC.prctl(_PR_SET_SECCOMP, _number(2), described) == 0)


def _program(column: int, machine: int) -> list[tuple[int, int, int, int]]:
    """The filter: (what to do, steps to skip if so, steps to skip if not, number)."""
    refused = [numbers[column] for numbers in _REFUSED_CALLS.values()]
    steps = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, machine), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    steps += [(_ABOVE, 0, 1, 0x40000000), (_RETURN, 0, 0, _EPERM)]  # the same calls under other numbers
    for number in (number for number in refused if number is not None):
        steps += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _EPERM)]
    # clone3 keeps its flags where a filter cannot look; told that there is none, libraries take clone
    steps += [(_EQUAL, 0, 1, _CLONE3[column]), (_RETURN, 0, 0, _ENOSYS)]
    steps += [(_EQUAL, 0, 4, _CLONE[column]), (_LOAD, 0, 0, 16), (_BITS, 1, 0, _CLONE_THREAD)]
    steps += [(_RETURN, 0, 0, _EPERM), (_RETURN, 0, 0, _ALLOW)]
    steps += [(_EQUAL, 0, 3, _PRLIMIT[column]), (_LOAD, 0, 0, 16), (_EQUAL, 1, 0, 0), (_RETURN, 0, 0, _EPERM)]
    return [*steps, (_RETURN, 0, 0, _ALLOW)]
