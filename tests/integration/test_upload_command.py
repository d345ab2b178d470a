"""`dklbench upload`, as a user meets it: a file goes in, a checkpoint comes out, or a sentence."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import BIN, Start

from dkl.architectures import CNN
from dkl.models import build
from dkl.weights import load_checkpoint
from service import commands_upload
from service.client import ServiceError
from service.settings import Settings


def upload(*words: str, settings: Settings, url: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **settings.as_environment(), "COLUMNS": "200"}
    command = [str(BIN / "dklbench"), "upload", *words, "--url", url]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)


def test_weights_become_a_checkpoint_that_is_judged(
    start_embedded: Start, settings: Settings, tmp_path: Path
) -> None:
    _, client = start_embedded()
    network = build(CNN(width=2), channels=1, classes=10).eval()
    torch.save({"state_dict": {f"module.{n}": v for n, v in network.state_dict().items()}}, tmp_path / "mine.pt")
    words = ["--dataset", "digits", "--model", "cnn", "width=2", "--wait"]
    done = upload(str(tmp_path / "mine.pt"), *words, settings=settings, url=client.url)
    assert "taken in" in done.stdout, done.stdout + done.stderr
    (job,) = client.jobs()
    assert (job["kind"], job["status"], job["result"]["format"]) == ("import", "succeeded", "pt")
    client.download(job["id"], "checkpoint", tmp_path / "checkpoint")
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(load_checkpoint(tmp_path / "checkpoint").model(x), network(x))
    judging = client.submit(
        "autoattack-digits-linf",
        {"model": {"job": job["id"]}, "images": 2, "suite": [{"kind": "apgd-ce", "steps": 2}]},
    )
    assert judging["parent_id"] == job["id"]

    (tmp_path / "page").write_text("<html>quota exceeded")
    refused = upload(str(tmp_path / "page"), *words, settings=settings, url=client.url)
    assert (refused.returncode, refused.stdout.count("checks it")) == (1, 1)
    assert refused.stderr.startswith("error: the upload is a web page: a sharing site answered with a page")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"architecture": "wide-resnet", "changes": ["depth=11"]}, "model: depth must be 6n"),
        ({"architecture": "wider-resnet"}, "model: kind must be 'cnn', 'resnet'"),
        ({"architecture": "cnn", "dataset": "cifar"}, "unknown dataset 'cifar'"),
        ({"architecture": "{cnn"}, "--architecture is not JSON"),
        ({"architecture": "cnn", "changes": ["width"]}, "'width' is no change to a recipe"),
        ({"architecture": "cnn", "changes": ["width.wide=3"]}, "width: must be a whole number"),
        ({"architecture": "cnn", "evaluate": "ikl-at-digits"}, "trains a model of its own"),
        ({"architecture": '{"kind": "cnn", "width": 2}'}, "no service answers at http://127.0.0.1:9"),
    ],
)
def test_mistakes_are_found_before_anything_is_sent(given: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    (tmp_path / "mine.pt").write_bytes(b"weights")
    with pytest.raises((ValueError, ServiceError), match=re.escape(sentence)):
        commands_upload.upload(tmp_path / "mine.pt", **{"dataset": "digits", **given}, url="http://127.0.0.1:9")
