"""docs/extending: the changes that a document describes fit the package as it is, and what they add runs.

A block under the name of a file is that file, a diff a change of it: what a hunk takes away or keeps has to be in
the file exactly once. Commands are run where the changes were made.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = sorted((ROOT / "docs" / "extending").glob("*.md"))
_BLOCK = re.compile(r"^(?:(?:In|The new file) `([^`]+)`:\n\n)?```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    file: str
    """Which it is, or is a change of; empty for commands."""
    language: str
    text: str


def blocks(document: Path) -> list[Block]:
    return [Block(*found) for found in _BLOCK.findall(document.read_text())]


def changed(before: str, diff: str) -> str:
    """`before` with the hunks of `diff` (' ', '-' and '+' in front, '@@' between them) made in it."""
    for hunk in diff.split("@@\n"):
        lines = hunk.splitlines()
        old = "".join(f"{line[1:]}\n" for line in lines if line[:1] in {" ", "-", ""})
        new = "".join(f"{line[1:]}\n" for line in lines if line[:1] in {" ", "+", ""})
        assert before.count(old) == 1, f"found {before.count(old)} times, expected once:\n{old}"
        before = before.replace(old, new)
    return before


_DRIVER = """
import runpy, shlex, sys
import pytest
from dkl.__main__ import main
for line in sys.stdin.read().splitlines():
    print("+", line, flush=True)
    match shlex.split(line):
        case ["python", "-m", "pytest", *words]:
            code = pytest.main(["-p", "no:cacheprovider", *words])
        case ["python", "-m", "dkl", *words]:
            code = main(words)
        case ["python", file]:
            code = runpy.run_path(file, run_name="__main__") and 0
    if code:
        sys.exit(f"{line} ended with {code}")
"""
"""The documents' commands in one process: importing torch takes longer than most of them."""


@pytest.mark.long
def test_what_the_documents_add_runs(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "dkl", tmp_path / "dkl", ignore=shutil.ignore_patterns("__pycache__"))
    parts = [block for document in DOCUMENTS for block in blocks(document)]
    for block in parts:
        file = tmp_path / block.file
        if block.language == "diff":
            file.write_text(changed(file.read_text(), block.text))
        elif block.file:
            file.parent.mkdir(parents=True, exist_ok=True)
            assert not file.exists()
            file.write_text(block.text)
    touched = sorted({block.file for block in parts if block.file})
    ruff = [sys.executable, "-m", "ruff", "check", "--quiet", "--config", str(ROOT / "pyproject.toml"), *touched]
    subprocess.run(ruff, cwd=tmp_path, check=True)
    commands = "".join(block.text for block in parts if block.language == "sh")
    environment = os.environ | {
        "PYTHONPATH": str(tmp_path),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    ran = subprocess.run(
        [sys.executable, "-c", _DRIVER],
        input=commands,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, f"{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}"
    assert ran.stdout.count('"kind":"finished"') == commands.count("-m dkl") == 6


def test_a_change_has_to_fit() -> None:
    assert changed("a\nb\nc\n", " a\n-b\n+B\n@@\n+.\n c\n") == "a\nB\n.\nc\n"
    with pytest.raises(AssertionError, match="found 0 times"):
        changed("a\n", "-b\n+c\n")
    with pytest.raises(AssertionError, match="found 2 times"):
        changed("a\na\n", "-a\n+c\n")
