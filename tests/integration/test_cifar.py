"""Real CIFAR-10 images through the REST path, on the CPU."""

import os
import shutil
from pathlib import Path

import pytest
from processes import Start, ends

from service.settings import Settings

SMALL = {
    "model": {"kind": "preact-resnet", "width": 16},
    "epochs": 2,
    "awp.first_epoch": 2,
    "batch_size": 32,
    "optimizer.lr": 0.05,
}
PACKED = Path(__file__).parent.parent / "data"
OFFICIAL = os.environ.get("DKLBENCH_TEST_CIFAR", "")


def train_and_judge(start: Start, training_images: int, judging: dict[str, object]) -> tuple[dict, dict]:
    _, client = start()
    training = client.submit("ikl-at-cifar10-preact-resnet-18", {**SMALL, "images": training_images}).id
    evaluation = client.submit("autoattack-cifar10-linf", {**judging, "model.job": training}).id
    return ends(client, training, seconds=900)["result"], ends(client, evaluation, seconds=900)["result"]


@pytest.mark.slow
def test_a_few_packed_images(start_embedded: Start, settings: Settings) -> None:
    shutil.copytree(PACKED, settings.datasets_dir)
    suite = [{"kind": "apgd-ce", "steps": 5}, {"kind": "square", "queries": 20}]
    trained, judged = train_and_judge(start_embedded, 250, {"images": 16, "suite": suite})
    assert trained["epochs"] == 2
    assert judged["images"] == 16
    assert len(judged["class_robust_accuracy"]) == 10
    assert 0 <= judged["robust_accuracy"] <= judged["clean_accuracy"] <= 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_official_files_and_autoattack_standard(start_embedded: Start, settings: Settings) -> None:
    if not OFFICIAL:
        pytest.skip("set DKLBENCH_TEST_CIFAR to a folder that holds cifar-10-batches-py")
    settings.data_dir.mkdir(parents=True)
    settings.datasets_dir.symlink_to(OFFICIAL)
    trained, judged = train_and_judge(start_embedded, 1000, {"images": 32})
    print(trained, judged)
    assert [stage["name"] for stage in judged["stages"]] == ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]
    accuracies = [stage["accuracy"] for stage in judged["stages"]]
    assert accuracies == sorted(accuracies, reverse=True)
