"""docs/deployment.md says what is: files that are there, variables that somebody reads, commands that exist."""

import re
from pathlib import Path

import pytest
import typer

from service import cli
from service.settings import Settings

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "docs" / "deployment.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
COMPOSE_FILES = sorted(ROOT.glob("docker-compose*.yml"))
ELSEWHERE = {"COMPOSE_PROFILES", "COMPOSE_FILE", "FORWARDED_ALLOW_IPS", "AWS_ENDPOINT_URL"}
"""Variables that Compose, uvicorn and boto3 read."""


def test_the_compose_example_is_the_one_in_the_file() -> None:
    first = (ROOT / "docker-compose.yml").read_text().split("\n\n")[0]
    examples = re.findall(r"^#   (.+)$", first, re.MULTILINE)
    assert len(examples) == 4
    for line in examples:
        assert line in TEXT


@pytest.mark.parametrize("path", COMPOSE_FILES, ids=lambda path: path.name)
def test_every_compose_file_is_explained_as_it_says_itself(path: Path) -> None:
    assert f"{path.name} " in TEXT or f"`{path.name}`" in TEXT or path.name == "docker-compose.yml"
    for command in re.findall(r"^#   (docker compose .+)$", path.read_text(), re.MULTILINE):
        assert command in TEXT


def test_files_that_are_named_are_there() -> None:
    named = set(re.findall(r"\b((?:deploy|tests|docs)/[\w./-]+\.\w+|docker-compose[\w.]*\.yml)", TEXT))
    assert len(named) > 8
    for name in named:
        assert (ROOT / name).exists(), name


def test_variables_are_read_by_somebody() -> None:
    known = {f"DKLBENCH_{name.upper()}" for name in Settings.model_fields} | ELSEWHERE
    for path in COMPOSE_FILES:
        known |= set(re.findall(r"(?<!\$)\$\{(\w+)", path.read_text()))
    used = {name for block in BLOCKS for name in re.findall(r"^(?:export )?([A-Z][A-Z_]+)=", block, re.MULTILINE)}
    assert len(used) > 10
    assert used <= known


def test_commands_exist() -> None:
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    used = {name for block in BLOCKS for name in re.findall(r"(?m)(?:^|service |-- )dklbench ([a-z-]+)", block)}
    assert {"keys", "doctor", "submit", "leaderboard"} <= used
    assert used <= commands.keys()


def test_the_number_of_gpus_is_a_profile() -> None:
    profiles = set(re.findall(r"\bgpus-\d", (ROOT / "deploy" / "gpus.yml").read_text()))
    assert set(re.findall(r"\bgpus-\d", TEXT)) <= profiles


def test_versions_are_those_of_the_files() -> None:
    (bucket,) = re.findall(r"chrislusf/seaweedfs:([\d.]+)", (ROOT / "docker-compose.yml").read_text())
    assert f"SeaweedFS {bucket}" in TEXT
    (python,) = re.findall(r"^ARG PYTHON=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert f"PYTHON={python}@sha256:" in TEXT
