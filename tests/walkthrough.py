"""Documents whose blocks are run, from the first to the last, in one folder, as a reader would.

A block with a title is a file. `sh` and `python` are run; `sh fails` ends with an error, and `sh offline` with the
refusal of a download, for there is no network. `text` is what the block before has said, line by line; "..." in it
stands for anything.
"""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt
from processes import BIN

ROOT = Path(__file__).parent.parent


class Block(NamedTuple):
    language: str
    how: str
    title: str
    text: str
    line: int


def blocks(document: Path) -> list[Block]:
    """The fenced blocks of the document."""
    found = []
    for token in MarkdownIt().parse(document.read_text()):
        if token.type == "fence" and token.map:
            language, _, rest = token.info.strip().partition(" ")
            title = re.search(r'title="([^"]+)"', rest)
            how = rest if not title else ""
            found.append(Block(language, how, title[1] if title else "", token.content, token.map[0] + 1))
    return found


def walk(document: Path, folder: Path, environment: Mapping[str, str]) -> None:
    """Do in `folder` all that the document says; AssertionError with its line where it is not as it says."""
    said = ""
    for block in blocks(document):
        where = f"{document.name}, line {block.line}"
        if block.title:
            (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.title).write_text(block.text)
        elif block.language in {"sh", "python"}:
            code, said = _run(block, folder, environment)
            assert (code != 0) == (block.how in {"fails", "offline"}), f"{where}: exit code {code}\n{said}"
        elif block.language == "text":
            for line in filter(None, map(str.strip, block.text.splitlines())):
                pattern = ".*".join(map(re.escape, line.split("...")))
                assert re.search(pattern, said), f"{where}: nobody said {line!r}, but\n{said}"


def _run(block: Block, folder: Path, environment: Mapping[str, str]) -> tuple[int, str]:
    command = ["bash", "-euo", "pipefail", "-c"] if block.language == "sh" else [sys.executable, "-c"]
    nowhere = "http://127.0.0.1:9"
    done = subprocess.run(
        [*command, block.text],
        cwd=folder,
        env={
            **os.environ,
            **{"OMP_NUM_THREADS": "1", "COLUMNS": "400", "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"},
            **{"http_proxy": nowhere, "https_proxy": nowhere, "no_proxy": "127.0.0.1"},
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr
