"""What is said while it runs, with command, hardware and versions on top, as a file."""

import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import psutil


class Report:
    def __init__(self) -> None:
        self._lines: list[str] = []
        self._began = time.monotonic()

    def say(self, line: str) -> None:
        print(line, flush=True)
        self._lines.append(line)

    def write(self, folder: Path, about: str) -> None:
        """As PROCESSOR-ABOUT-DATE.txt."""
        name, tag = _processor()
        minutes, seconds = divmod(round(time.monotonic() - self._began), 60)
        day = time.strftime("%Y-%m-%d")
        command = " ".join(["python", "-m", "torture", *sys.argv[1:]])
        memory = round(psutil.virtual_memory().total / 2**30)
        head = [
            f"Command: PYTHONPATH=tests {command}     ({minutes} min {seconds} s)",
            f"Hardware: {os.cpu_count()} vCPUs, {name}, {memory} GiB; {platform.system()}, "
            f"Python {platform.python_version()}; {day}",
            f"Commit: {_commit()}",
            "Versions: " + ", ".join(f"{p} {version(p)}" for p in ("dkl-bench", "torch", "celery", "sqlalchemy")),
            "",
        ]
        path = folder / f"{tag}-{about}-{day}.txt"
        path.write_text("\n".join([*head, *self._lines]) + "\n")
        print(f"written to {path}", file=sys.stderr)


def _processor() -> tuple[str, str]:
    """Its name, and a short word for file names: epyc-avx512."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    name = facts.get("model name", platform.machine())
    maker = next((word for word in ("epyc", "xeon", "ryzen", "core") if word in name.lower()), platform.machine())
    flags = facts.get("flags", "").split()
    width = "-avx512" if "avx512f" in flags else "-avx2" if "avx2" in flags else ""
    return name, maker + width


def _commit() -> str:
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], check=False, capture_output=True, text=True
    )
    return described.stdout.strip() or "outside a checkout"
