"""Verdicts on real models and whole AutoAttack versions, beside pyautoattack called directly.

The CIFAR-10 model is the ResNet-18 that pyautoattack ships (91.8 % clean, undefended); the images are the first 24
of the CIFAR-10 test set, in tests/data.
"""

from pathlib import Path

import numpy as np
import pyautoattack
import pytest
import torch
from pyautoattack import AutoAttack
from pyautoattack.examples.resnet import ResNet18
from trials import (
    KINDS,
    as_tensor,
    batches,
    cnn,
    evaluation,
    judge,
    left,
    left_by_pyautoattack,
    loaded,
    quick_suite,
    result,
    write_images,
)

from dkl.architectures import ResNet
from dkl.engine import run
from dkl.evaluate import evaluate
from dkl.weights import save_checkpoint

IMAGES = Path(__file__).parents[1] / "data"
WEIGHTS = Path(pyautoattack.__file__).parent / "examples" / "model_test.pt"


@pytest.fixture(scope="module")
def resnet() -> torch.nn.Module:
    """The published network in its authors' code."""
    model = ResNet18()
    model.load_state_dict(torch.load(WEIGHTS, map_location="cpu", weights_only=True))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, resnet):
    """The same weights as a checkpoint of ours: path and sha256."""
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    sha256 = save_checkpoint(path, resnet, architecture=ResNet(), channels=3, classes=10, dataset="cifar10")
    return path, sha256


def cifar10(count):
    with np.load(IMAGES / "cifar10_test.npz") as file:
        return as_tensor(file["image"][:count]), torch.from_numpy(file["label"][:count])


def judge_resnet(checkpoint, workdir, norm, eps, **changes):
    path, sha256 = checkpoint
    recipe = evaluation(norm, eps, dataset="cifar10", model={"checkpoint": sha256}, **changes)
    return recipe, list(run(recipe, workdir, device="cpu", data_dir=IMAGES, fetch=lambda _: path))


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.5 / 255), pytest.param("L2", 0.07, marks=pytest.mark.slow)])
def test_a_converted_checkpoint_is_judged_as_the_original(norm, eps, resnet, checkpoint, tmp_path):
    effort = {"steps": 2, "targets": 1, "queries": 8}
    x, y = cifar10(4)
    asked = {"suite": quick_suite(**effort), "images": 4, "chunk_size": 3, "seed": 1, "engine": "pyautoattack"}
    recipe, events = judge_resnet(checkpoint, tmp_path, norm, eps, **asked)
    correct = torch.tensor(left(events, "clean"))
    expected = left_by_pyautoattack(resnet, recipe, x[correct], y[correct], **effort)[-1]
    assert left(events) == correct[expected].tolist()
    assert result(events).rejected == 0
    assert 0 < len(left(events)) < len(correct)


def left_by_autoattack(model, x, y, norm, eps, version):
    """Rows that stand after a whole version of pyautoattack."""
    adversary = AutoAttack(model, norm=norm, eps=eps, seed=0, version=version)
    with torch.random.fork_rng(devices=[]):
        _, y_adv = adversary.run_standard_evaluation(x, y, batch_size=len(x))
    return (y_adv == y).nonzero().squeeze(1).tolist()


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("norm", "eps"), [("Linf", 1 / 255), ("L2", 0.1)])
def test_the_standard_version_on_a_converted_checkpoint(norm, eps, resnet, checkpoint, tmp_path):
    x, y = cifar10(8)
    _, ours = judge_resnet(checkpoint, tmp_path, norm, eps, images=8)
    assert left(ours) == left_by_autoattack(resnet, x, y, norm, eps, "standard")
    assert 0 < len(left(ours)) < 8


VERSIONS = [pytest.param("standard", "Linf", 0.01, marks=pytest.mark.long)] + [
    pytest.param(version, norm, eps, marks=pytest.mark.slow)
    for version in ("standard", "plus", "rand")
    for norm, eps in (("Linf", 0.01), ("L2", 0.12), ("L1", 0.6))
    if (version, norm) != ("standard", "Linf")
]


@pytest.mark.parametrize(("version", "norm", "eps"), VERSIONS)
def test_each_version_on_a_tiny_model(version, norm, eps, tmp_path):
    """Both engines; of images this far from the border the verdict does not depend on who draws the noise."""
    model = cnn()
    x, y = write_images(tmp_path, model, 3)
    expected = left_by_autoattack(model, x, y, norm, eps, version)
    assert 0 < len(expected) < 3
    for engine in ("dkl", "pyautoattack"):
        events = judge(evaluation(norm, eps, suite=version, engine=engine), model, tmp_path, tmp_path / engine)
        assert left(events) == expected, engine
        assert result(events).protocol == f"AutoAttack {version}"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("engine", ["dkl", "pyautoattack"])
@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.01), ("L2", 0.12), ("L1", 0.6)])
def test_on_a_gpu(norm, eps, engine, tmp_path):
    suite = quick_suite(steps=20, targets=9, queries=200)
    model = cnn()
    write_images(tmp_path, model, 24)
    recipe = evaluation(norm, eps, suite=suite, engine=engine)
    on_cpu = left(judge(recipe, model, tmp_path, tmp_path / "cpu"))
    torch.cuda.manual_seed(5)
    state = torch.cuda.get_rng_state()
    (tmp_path / "gpu").mkdir()
    events = list(evaluate(recipe, loaded(cnn()), tmp_path / "gpu", device="cuda", data_dir=tmp_path))
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert list(dict.fromkeys(batch.name for batch in batches(events)))[1:] == KINDS
    assert len(set(left(events)) ^ set(on_cpu)) <= 1  # a GPU adds up in another order
