"""What `pip install dkl-bench` brings, without extras, is a service that starts and needs no torch."""

import subprocess
import sys
import zipfile
from pathlib import Path

import httpx2
import pytest
from processes import Processes, free_port, wait_until

from service.client import Client, ServiceError
from service.settings import Settings

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
    ]
    copied = folder / "source"
    copied.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "dkl", "service", "workers", "migrations", "docs"):
        (copied / name).symlink_to(ROOT / name)
    subprocess.run([*command, str(copied)], check=True, capture_output=True, env={"PATH": "/usr/bin:/bin"})
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_package_alone_serves_without_torch(installed: Path, processes: Processes, settings: Settings) -> None:
    port = free_port()
    environment = {**settings.as_environment(), "PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(ROOT / "tests" / "only_required.py"), str(installed)]
    assert processes.start(*command, "migrate", environment=environment).wait(60) == 0
    process = processes.start(*command, "serve", "--port", str(port), environment=environment)
    url = f"http://127.0.0.1:{port}"
    with Client(url) as client, httpx2.Client(base_url=url) as http:
        wait_until(lambda: process.poll() is not None or answers(client), what="the service")
        assert client.submit("natural-digits", {})["status"] == "queued"
        assert http.get("/readyz").status_code == 200
        page = http.get("/", headers={"Accept": "text/html"}, follow_redirects=True)
        assert page.status_code == 200
        assert http.get("/static/dkl.css").status_code == 200
        assert "Philox" in http.get("/docs/evaluation").text
        assert http.get("/docs/leaderboard.png").headers["content-type"] == "image/png"
        assert http.get("/api/v1/distillation").json()["total"] > 100
        assert http.get("/metrics").status_code == 200
    process.terminate()
    assert process.wait(20) == 0


def answers(client: Client) -> bool:
    try:
        return bool(client.recipes())
    except ServiceError:
        return False
