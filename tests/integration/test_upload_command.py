"""`dklbench upload` and `evaluate`, as a user meets them: a file goes in, a checkpoint and a place come out."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Command
from processes import Start

from dkl.architectures import CNN
from dkl.models import build
from dkl.weights import load_checkpoint, save_checkpoint
from service import commands_upload
from service.client import ServiceError
from service.client_weights import import_of, judge_of, judge_of_the_zoo


@pytest.mark.long
def test_weights_become_a_checkpoint_that_is_judged(
    start_embedded: Start, dklbench: Command, tmp_path: Path
) -> None:
    _, client = start_embedded()
    network = build(CNN(width=2), channels=1, classes=10).eval()
    torch.save({"state_dict": {f"module.{n}": v for n, v in network.state_dict().items()}}, tmp_path / "mine.pt")
    here = ["--url", client.url]
    about = ["--dataset", "digits", "--architecture", "cnn width=2"]
    done = dklbench("upload", str(tmp_path / "mine.pt"), *about, "--watch", *here)
    assert "taken in" in done.stdout, done.stdout + done.stderr
    (job,) = client.jobs()
    assert (job.kind, job.status, job.document["result"]["format"]) == ("import", "succeeded", "pt")
    job.download("checkpoint", tmp_path / "ours.safetensors")
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(load_checkpoint(tmp_path / "ours.safetensors").model(x), network(x))

    quick = ["images=20", 'suite=[{"kind": "apgd-ce", "steps": 2}]']
    judged = dklbench("evaluate", str(tmp_path / "ours.safetensors"), *quick, *here)
    assert judged.returncode == 0, judged.stdout + judged.stderr
    (row,) = client.leaderboard(dataset="digits").rows
    assert re.search(r"clean accuracy +[\d.]+% \(95 %: [\d.]+% to [\d.]+%\)\n", judged.stdout)
    assert re.search(rf"robust accuracy +{row.robust_accuracy:.2%} \(95 %", judged.stdout)
    assert re.search(r"judged by +custom, 20 images\nplace +1 of 1 on Handwritten digits, Linf", judged.stdout)
    assert judged.stdout.endswith(f"{client.url}/entries/{row.entry}\n")

    (tmp_path / "page").write_text("<html>quota exceeded")
    refused = dklbench("evaluate", str(tmp_path / "page"), *about, *here)
    assert (refused.returncode, refused.stdout.count("is queued")) == (1, 2)
    assert re.search(r"error: job \w+ \(import\) has failed: the upload is a web page", refused.stderr)
    assert "see dklbench log" in refused.stderr


ON = {"dataset": "digits"}
WRN = "wide-resnet depth=28 width=10"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "say so: --architecture 'wide-resnet depth=28 width=10' --dataset cifar10"),
        ({"architecture": "cnn"}, "does not say of which dataset its weights are; say so: --dataset cifar10"),
        ({"architecture": "wide-resnet depth=11", **ON}, "model: depth must be 6n"),
        ({"architecture": "wider-resnet", **ON}, "model: kind must be 'cnn', 'resnet'"),
        ({"architecture": "cnn", "dataset": "cifar"}, "unknown dataset 'cifar'"),
        ({"architecture": "{cnn"}, "--architecture is not JSON"),
        ({"architecture": "cnn width"}, "'width' is no change to a recipe"),
        ({"architecture": "cnn width.wide=3", **ON}, "width: must be a whole number"),
        ({"architecture": '{"kind": "cnn", "width": 2}', **ON}, "no service answers at http://127.0.0.1:9"),
        ({"architecture": WRN, "dataset": "npz:mine", "recipe": None}, "no recipe judges models of npz:mine"),
        ({"architecture": WRN, **ON, "recipe": "ikl-at-digits"}, "trains a model of its own; name an evaluation"),
        ({"architecture": WRN, **ON, "recipe": "autoattack-digit"}, "did you mean autoattack-digits-linf"),
    ],
)
def test_mistakes_are_found_before_anything_is_sent(given: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.pt"
    path.write_bytes(b"weights")
    command = commands_upload.evaluate if "recipe" in given else commands_upload.upload
    file: Any = [str(path)] if "recipe" in given else path
    with pytest.raises((ValueError, ServiceError), match=re.escape(sentence)):
        command(file, **given, url="http://127.0.0.1:9")


def test_a_checkpoint_of_ours_says_itself_which_recipe_judges_it(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    network = build(CNN(width=2), channels=3, classes=10)
    save_checkpoint(path, network, architecture=CNN(width=2), channels=3, classes=10, dataset="cifar10-lt@100")
    about = import_of(path, architecture=None, dataset=None, entry=None)
    assert (about["model"], about["dataset"]) == (CNN(width=2).model_dump(mode="json"), "cifar10-lt@100")
    assert judge_of(about["dataset"]) == "autoattack-cifar10-linf"
    assert judge_of("digits") == "autoattack-digits-linf"
    assert judge_of_the_zoo("cifar10/corruptions/Hendrycks2020AugMix_WRN") == "corruptions-cifar10"
    assert judge_of_the_zoo("cifar10/L2/Wang2023Better_WRN-28-10") == "autoattack-cifar10-l2"
