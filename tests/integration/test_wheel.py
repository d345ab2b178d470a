"""What is built holds what it needs and nothing else, and what `pip install` brings of it works without this
repository: the client alone, the service with its extra."""

import json
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from email.parser import Parser
from pathlib import Path

import httpx2
import pytest
from only_required import refused
from processes import Processes, answers, free_port, wait_until

from service.client import Client
from service.settings import Settings

ROOT = Path(__file__).parent.parent.parent
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
NOT_SHIPPED = {"__pycache__", ".ipynb_checkpoints"}

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def build(source: Path, into: Path, *arguments: str) -> Path:
    """What hatchling makes of the source, the only file of its kind in the folder."""
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(into), *arguments]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=60)
    return into


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution."""
    return build(ROOT, tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="session")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


# --- what is in it ----------------------------------------------------------------------------------------


def files(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not NOT_SHIPPED & set(path.parts)
    }


def test_the_wheel_holds_the_package_and_the_documents(unpacked: Path) -> None:
    ours = {f"{name}/{path}" for name in ("dkl", "service", "workers") for path in files(ROOT / name)}
    documents = {f"service/web/docs/{path}" for path in files(ROOT / "docs")}
    information = f"dkl_bench-{VERSION}.dist-info/"
    assert {path for path in files(unpacked) if not path.startswith(information)} == ours | documents
    for needed in ("service/migrations/env.py", "service/data/papers.json", "service/web/static/dkl.css"):
        assert needed in ours


def test_the_wheel_claims_no_other_name(unpacked: Path) -> None:
    assert {path.name for path in unpacked.iterdir()} == {
        "dkl",
        "service",
        "workers",
        f"dkl_bench-{VERSION}.dist-info",
    }


@pytest.mark.long
def test_the_source_distribution_builds_the_same_wheel(built: Path, wheel: Path, tmp_path: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    (again,) = build(source, tmp_path / "again", "-t", "wheel").glob("*.whl")
    assert again.read_bytes() == wheel.read_bytes()


def test_the_metadata_is_complete(unpacked: Path) -> None:
    folder = unpacked / f"dkl_bench-{VERSION}.dist-info"
    said = Parser().parsestr((folder / "METADATA").read_text(encoding="utf-8"))
    assert (said["Name"], said["Version"], said["Requires-Python"]) == ("dkl-bench", VERSION, ">=3.11")
    assert {"service", "worker", "s3", "zoo", "corruptions", "dev"} <= set(said.get_all("Provides-Extra"))
    assert said["License-Expression"]
    licences = set(said.get_all("License-File"))
    assert {
        "LICENSE",
        "service/web/static/vendor/htmx-LICENSE",
        "service/web/static/vendor/uPlot-LICENSE",
    } <= licences
    assert all((folder / "licenses" / path).is_file() for path in licences)
    assert said["Description-Content-Type"] == "text/markdown"
    assert (folder / "entry_points.txt").read_text().split() == [
        "[console_scripts]",
        "dklbench",
        "=",
        "service.cli:main",
    ]


# --- what it does where only its requirements are -----------------------------------------------------------


@pytest.fixture(scope="session")
def only(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """The command `dklbench` where nothing but the wheel with these extras is installed."""
    folder = tmp_path_factory.mktemp("refused")

    def command(extras: str) -> list[str]:
        names = folder / f"{extras or 'base'}.txt"
        if not names.exists():
            names.write_text("\n".join(refused(unpacked, extras)))
            assert ("torch" in names.read_text().split()) == ("worker" not in extras)
        return [sys.executable, str(ROOT / "tests" / "only_required.py"), str(unpacked), str(names)]

    return command


@pytest.fixture
def ask(only: Callable[[str], list[str]], unpacked: Path, settings: Settings, tmp_path: Path) -> Run:
    """Runs a command of the wheel with the extras of the first argument, away from the repository."""

    def run(extras: str, *words: str) -> "subprocess.CompletedProcess[str]":
        environment = {**os.environ, **settings.as_environment(), "PYTHONPATH": str(unpacked), "COLUMNS": "200"}
        command = [*only(extras), *words]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    return run


@pytest.mark.parametrize("words", [("--help",), ("recipes",), ("submit", "--help"), ("serve", "--help")])
def test_the_base_tells_about_itself(ask: Run, words: tuple[str, ...]) -> None:
    said = ask("", *words)
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip()
    assert not said.stderr


def test_the_base_lists_the_recipes(ask: Run) -> None:
    assert "ikl-at-digits" in ask("", "recipes", "digits").stdout


@pytest.mark.long
@pytest.mark.parametrize(
    ("extras", "words", "needs"),
    [
        ("", ("migrate",), "service"),
        ("", ("serve",), "service"),
        ("", ("up",), "service"),
        ("", ("doctor",), "service"),
        ("", ("gc",), "service"),
        ("", ("keys", "list"), "service"),
        ("", ("run", "natural-digits"), "worker"),
        ("service", ("run", "natural-digits"), "worker"),
        ("service", ("up",), "service,worker"),
        ("service", ("demo", "--exit"), "service,worker"),
    ],
)
def test_a_command_without_its_extra_says_what_to_install(
    ask: Run, extras: str, words: tuple[str, ...], needs: str
) -> None:
    said = ask(extras, *words)
    assert said.returncode == 1
    (sentence,) = said.stderr.strip().splitlines()
    assert sentence.startswith("error: ")
    assert sentence.endswith(f"not installed here: pip install 'dkl-bench[{needs}]'")


@pytest.mark.long
def test_a_host_of_workers_alone_has_its_doctor(ask: Run) -> None:
    said = ask("worker", "doctor", "--json")
    assert not said.stderr
    assert {"database", "torch"} <= {finding["check"] for finding in json.loads(said.stdout)["findings"]}


@pytest.mark.slow
def test_the_base_asks_a_service_that_runs_without_torch(
    only: Callable[[str], list[str]], unpacked: Path, ask: Run, processes: Processes, settings: Settings
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {**settings.as_environment(), "PYTHONPATH": str(unpacked), "PYTHONDONTWRITEBYTECODE": "1"}
    command = only("service")
    assert processes.start(*command, "migrate", environment=environment).wait(60) == 0
    process = processes.start(*command, "serve", "--port", str(port), environment=environment)
    with Client(url) as client, httpx2.Client(base_url=url) as http:
        wait_until(lambda: process.poll() is not None or answers(client), what="the service")
        queued = ask("", "submit", "natural-digits", "--url", url)
        assert queued.returncode == 0, queued.stderr
        (job,) = client.jobs()
        assert job.id in ask("", "jobs", "--url", url).stdout
        assert "queued" in ask("", "log", job.id, "--url", url).stdout
        for words in (("leaderboard",), ("workers",), ("cancel", job.id), ("log", job.id, "--follow")):
            said = ask("", *words, "--url", url)
            assert said.returncode == 0, said.stderr
        assert http.get("/livez").status_code == 200
        assert http.get("/readyz").status_code == 200
        page = http.get("/", headers={"Accept": "text/html"}, follow_redirects=True)
        assert page.status_code == 200
        assert http.get("/static/dkl.css").status_code == 200
        assert "Philox" in http.get("/docs/evaluation").text
        assert http.get("/docs/leaderboard.png").headers["content-type"] == "image/png"
        assert http.get("/api/v1/distillation").json()["total"] > 100
        assert http.get("/api/openapi.json").json()["info"]["version"] == VERSION
        assert http.get("/metrics").status_code == 200
    process.terminate()
    assert process.wait(20) == 0


# --- installed for real --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def install(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes an empty environment and installs the wheel with these extras, from the package registry."""

    def installed(extras: str) -> Path:
        folder = tmp_path_factory.mktemp("environment")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=120)
        what = f"{wheel}[{extras}]" if extras else str(wheel)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        answer = subprocess.run([*pip, what], capture_output=True, text=True, timeout=1500, check=False)
        assert answer.returncode == 0, answer.stderr
        return folder / "bin" / "dklbench"

    return installed


def environment_of(settings: Settings) -> dict[str, str]:
    """Without what leads back into the repository or this environment."""
    kept = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    return {**kept, **settings.as_environment()}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_base_installs_into_an_empty_environment(
    install: Callable[[str], Path], settings: Settings, tmp_path: Path
) -> None:
    """Downloads. Without that: test_the_base_tells_about_itself and its neighbours."""
    command = install("")
    for words, says in {("--help",): "leaderboard", ("recipes", "digits"): "ikl-at-digits"}.items():
        said = subprocess.run(
            [str(command), *words], cwd=tmp_path, env=environment_of(settings), capture_output=True, text=True,
            timeout=60, check=True,
        )  # fmt: skip
        assert says in said.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_service_installs_into_an_empty_environment(
    install: Callable[[str], Path], settings: Settings, processes: Processes
) -> None:
    """Downloads. Without that: test_the_base_asks_a_service_that_runs_without_torch."""
    command, port = str(install("service")), free_port()
    environment = {**environment_of(settings), "PYTHONPATH": ""}
    assert processes.start(command, "migrate", environment=environment).wait(60) == 0
    process = processes.start(command, "serve", "--port", str(port), environment=environment)
    with Client(f"http://127.0.0.1:{port}") as client, httpx2.Client(base_url=client.url) as http:
        wait_until(lambda: process.poll() is not None or answers(client), what="the service")
        assert http.get("/livez").status_code == 200
        assert "Leaderboard" in http.get("/", headers={"Accept": "text/html"}, follow_redirects=True).text
        assert http.get("/docs").status_code == 200
    process.terminate()
    assert process.wait(20) == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_worker_installs_into_an_empty_environment(
    install: Callable[[str], Path], settings: Settings, tmp_path: Path
) -> None:
    """Downloads gigabytes. Without that, nothing tries the worker's requirements but test_packaging.py."""
    said = subprocess.run(
        [str(install("worker")), "run", "natural-digits", "epochs=1", "--device", "cpu"],
        cwd=tmp_path, env=environment_of(settings), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
