"""The commands of docs/backup.md for one machine, run as they stand there, with folders of the test's own."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from installation import Installation, furnish
from processes import BIN

from service.settings import Settings

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "backup.md"
NOT_HERE = ("docker", "pip", "sudo", "git", "cp")
"""What these tests have not, or must not do."""


def commands() -> list[str]:
    blocks = re.findall(r"```(?:sh|cron)\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line.removeprefix("30 3 * * * ") for line in lines if line and not line.startswith(NOT_HERE)]


@pytest.fixture
def shell(settings: Settings, tmp_path: Path) -> Settings:
    here = Installation.at(settings.model_copy(update={"data_dir": tmp_path / "dkl-bench"}))
    furnish(here, tmp_path)
    here.db.dispose()
    return here.settings


@pytest.mark.long
def test_the_commands_do_what_is_said(shell: Settings, tmp_path: Path) -> None:
    found = [command.replace("/srv/", f"{tmp_path}/") for command in commands()]
    assert [command.rpartition("dklbench ")[2].split()[0] for command in found] == [
        *("backup", "backup", "backup", "restore", "doctor", "up", "backup", "up"),
    ]
    environment = {**os.environ, **shell.as_environment(), "PATH": f"{BIN}:{os.environ['PATH']}"}
    for command in found:
        if command.endswith(" up") or command == "dklbench up":
            continue  # serves until it is stopped; test_upgrade_commands.py starts it
        done = subprocess.run(
            command, shell=True, env=environment, capture_output=True, text=True, check=False, timeout=120
        )
        if "doctor" in command:
            assert "the last one was made" in done.stdout  # it may miss workers and GPUs
        else:
            assert done.returncode == 0, (command, done.stdout, done.stderr)
