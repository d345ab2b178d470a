"""`kill -9` in the middle of a training of each objective; run again, it leaves the same file of weights."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

RECIPES = ["natural-digits", "pgd-at-digits", "trades-digits", "mart-digits", "ikl-at-digits", "gkl-at-digits"]
CHANGES = ["epochs=5", "images=640", "validation.images=128", "select=best"]


def command(recipe: str, workdir: Path) -> list[str]:
    awp = [] if recipe.startswith("natural") else ['awp={"first_epoch": 2}']
    return [sys.executable, "-m", "dkl", recipe, *CHANGES, *awp, "--workdir", str(workdir), "--device", "cpu"]


def checkpoint(recipe: str, workdir: Path) -> str:
    said = subprocess.run(command(recipe, workdir), capture_output=True, text=True, check=True).stdout
    return json.loads(said.splitlines()[-1])["result"]["checkpoint_sha256"]


@pytest.mark.slow
@pytest.mark.parametrize("epoch", [2, 4])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_killed_training_ends_with_the_same_weights(recipe: str, epoch: int, tmp_path: Path) -> None:
    with subprocess.Popen(command(recipe, tmp_path / "killed"), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line).get("phase") == f"epoch {epoch} of 5":  # its first batch is done
                os.kill(process.pid, signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    assert checkpoint(recipe, tmp_path / "killed") == checkpoint(recipe, tmp_path / "straight")
