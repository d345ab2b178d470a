"""Plugins, as an operator installs them and users name them; docs/plugins.md is done from beginning to end."""

import os
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from processes import BIN, Processes, answers, free_port, wait_until
from walkthrough import ROOT, blocks, walk

from service.client import Client, ServiceError
from service.settings import Settings

DOCUMENT = ROOT / "docs" / "plugins.md"
EXAMPLE = ROOT / "examples" / "plugin"


def test_the_document_shows_the_example_in_the_repository() -> None:
    shown = {block.title.removeprefix("example/"): block.text for block in blocks(DOCUMENT) if block.title}
    kept = {str(path.relative_to(EXAMPLE)): path.read_text() for path in EXAMPLE.rglob("*") if path.is_file()}
    assert shown == {name: text for name, text in kept.items() if "__pycache__" not in name}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the example is installed into, and nothing else."""
    target = tmp_path_factory.mktemp("operator") / "site-packages"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    command = [*pip, "--no-deps", "--no-build-isolation", "--target", str(target), str(EXAMPLE)]
    subprocess.run(command, check=True, capture_output=True)
    return target


def paths(*more: Path) -> str:
    return os.pathsep.join([str(ROOT), *map(str, more)])


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_document_is_true(processes: Processes, settings: Settings, installed: Path, tmp_path: Path) -> None:
    """Eight commands that import torch, and two jobs of a service; test_plugin_code covers their parts."""
    port = free_port()
    environment = {**settings.as_environment(), "DKLBENCH_URL": f"http://127.0.0.1:{port}"}
    up = [str(BIN / "dklbench"), "up", "--port", str(port)]
    processes.start(*up, environment={**environment, "PYTHONPATH": paths(installed)})
    with Client(environment["DKLBENCH_URL"]) as client:
        wait_until(lambda: answers(client), what="the service")
    more = {"PYTHONPATH": paths(tmp_path / "plugins"), "WITHOUT_PLUGINS": str(ROOT)}
    walk(DOCUMENT, tmp_path, {**environment, **more})


MODEL = {"kind": "plugin", "name": "patch-mlp", "arguments": {"width": 16}}
OBJECTIVE = {"kind": "plugin", "name": "margin-at", "arguments": {}}


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_job_goes_to_the_worker_that_has_its_plugin(
    processes: Processes, settings: Settings, installed: Path
) -> None:
    """The service and its own worker lack the package; another worker has it, and gets what needs it."""
    port = free_port()
    up = [str(BIN / "dklbench"), "up", "--port", str(port)]
    environment = settings.as_environment()
    processes.start(*up, environment={**environment, "PYTHONPATH": paths()})
    with Client(f"http://127.0.0.1:{port}") as client:
        wait_until(lambda: answers(client) and client.workers(), what="the service and its worker")
        changes = {"model": MODEL, "objective": OBJECTIVE, "attack.loss": "objective", "epochs": 1, "images": 128}
        with pytest.raises(ServiceError, match=r"model\.name: no worker has the model 'patch-mlp'; install its"):
            client.submit("trades-digits", changes)
        worker = [sys.executable, "-m", "workers", "--name", "with-plugins"]
        with_plugins = processes.start(*worker, environment={**environment, "PYTHONPATH": paths(installed)})
        wait_until(lambda: len(client.workers()) == 2, what="the other worker")
        offered = {one["name"]: one["plugins"] for one in client.workers()}
        assert offered.pop("with-plugins") == {
            "model:patch-mlp": "dklbench-example 0.1.0",
            "objective:margin-at": "dklbench-example 0.1.0",
        }
        assert [*offered.values()] == [{}]

        trained = client.submit("trades-digits", changes).wait()
        assert trained.document["result"]["provenance"]["versions"]["dklbench-example"] == "0.1.0"
        few = {"model.job": trained.id, "images": 4, "policy": "screen"}
        judged = client.submit("autoattack-digits-linf", few).wait()
        assert judged.document["result"]["architecture"] == "patch-mlp"
        assert judged.document["result"]["provenance"]["versions"]["dklbench-example"] == "0.1.0"

        with_plugins.terminate()
        with_plugins.wait(60)
        wait_until(lambda: len(client.workers()) == 1, what="the worker to leave")
        with pytest.raises(ServiceError, match="no worker has the model 'patch-mlp'"):
            client.submit("trades-digits", changes)
        waiting = client.submit("autoattack-digits-linf", {**few, "seed": 1})
        assert waiting.status == "queued"
        page = httpx2.get(waiting.url, headers={"Accept": "text/html"}).text
        assert "no living worker has the plugin patch-mlp (model); install its package there" in page
