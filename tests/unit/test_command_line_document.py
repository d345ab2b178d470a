"""docs/command-line.md: every command is in it, and every example is one that the command line takes."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from service import cli

TEXT = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text()
BLOCKS = "".join(re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)).replace("\\\n", " ")
EXAMPLES = [shlex.split(line.partition(" | ")[0], comments=True) for line in BLOCKS.splitlines()]
ROOT: Any = typer.main.get_command(cli.app)


def names(group: Any, before: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from names(command, f"{before}{name} ")
        else:
            yield before + name


def test_every_command_has_an_example() -> None:
    shown = {" ".join(words[1:3]) for words in EXAMPLES} | {words[1] for words in EXAMPLES}
    assert sorted(set(names(ROOT)) - shown) == []


@pytest.mark.parametrize("words", EXAMPLES, ids=" ".join)
def test_an_example_is_taken(words: list[str]) -> None:
    program, *rest = words
    assert program == "dklbench"
    group = ROOT
    while hasattr(group, "commands"):
        name, *rest = rest
        group = group.commands[name]
    group.make_context(name, rest)  # raises for an option or an argument that it does not know


def test_the_exit_codes_are_those_of_the_program() -> None:
    codes = [int(code) for code in re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE)]
    assert codes == [cli.DONE, cli.FAILED, 2, cli.NO_SERVICE, cli.NOT_ALLOWED, 130]
