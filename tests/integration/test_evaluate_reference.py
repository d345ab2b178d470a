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
from trials import KINDS, as_tensor, cnn, evaluation, loaded, quick_adversary, quick_suite, standing, write_images

from dkl.engine import run
from dkl.evaluate import chunk_seed, evaluate
from dkl.events import ChunkDone
from dkl.recipes import ResNet
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
    events = run(recipe, workdir, device="cpu", data_dir=IMAGES, fetch=lambda _: path)
    return [event for event in events if isinstance(event, ChunkDone)]


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.5 / 255), ("L2", 0.07)])
def test_a_converted_checkpoint_is_judged_as_the_original(norm, eps, resnet, checkpoint, tmp_path):
    effort = {"steps": 3, "targets": 1, "queries": 12}
    x, y = cifar10(12)
    suite = quick_suite(**effort)
    done = judge_resnet(checkpoint, tmp_path, norm, eps, suite=suite, images=12, chunk_size=8, seed=1)
    for chunk, part in zip(done, (slice(0, 8), slice(8, 12)), strict=True):
        adversary = quick_adversary(resnet, norm, eps, chunk_seed(1, chunk.chunk), **effort)
        assert chunk.stages[-1].standing == standing(adversary, x[part], y[part])
        assert chunk.rejected == 0
    final = "".join(chunk.stages[-1].standing for chunk in done)
    assert {"0", "1"} == set(final)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("norm", "eps"), [("Linf", 1 / 255), ("L2", 0.1)])
def test_the_standard_version_on_a_converted_checkpoint(norm, eps, resnet, checkpoint, tmp_path):
    x, y = cifar10(8)
    [chunk] = judge_resnet(checkpoint, tmp_path, norm, eps, images=8)
    adversary = AutoAttack(resnet, norm=norm, eps=eps, seed=chunk_seed(0, 0), version="standard")
    assert chunk.stages[-1].standing == standing(adversary, x, y)
    assert {"0", "1"} == set(chunk.stages[-1].standing)


VERSIONS = [("standard", "Linf", 0.01)] + [
    pytest.param(version, norm, eps, marks=pytest.mark.slow)
    for version in ("standard", "plus", "rand")
    for norm, eps in (("Linf", 0.01), ("L2", 0.12), ("L1", 0.6))
    if (version, norm) != ("standard", "Linf")
]


@pytest.mark.parametrize(("version", "norm", "eps"), VERSIONS)
def test_each_version_on_a_tiny_model(version, norm, eps, tmp_path):
    model = cnn()
    x, y = write_images(tmp_path, model, 8)
    recipe = evaluation(norm, eps, suite=version)
    events = evaluate(recipe, loaded(model), tmp_path, device="cpu", data_dir=tmp_path)
    [chunk] = [event for event in events if isinstance(event, ChunkDone)]
    adversary = AutoAttack(model, norm=norm, eps=eps, seed=chunk_seed(0, 0), version=version)
    assert chunk.stages[-1].standing == standing(adversary, x, y)
    assert {"0", "1"} == set(chunk.stages[-1].standing)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.01), ("L2", 0.12), ("L1", 0.6)])
def test_on_a_gpu(norm, eps, tmp_path):
    effort = {"steps": 6, "targets": 3, "queries": 60}
    model = cnn()
    x, y = write_images(tmp_path, model, 24)
    torch.cuda.manual_seed(5)
    state = torch.cuda.get_rng_state()
    recipe = evaluation(norm, eps, suite=quick_suite(**effort))
    events = list(evaluate(recipe, loaded(model), tmp_path, device="cuda", data_dir=tmp_path))
    assert torch.equal(torch.cuda.get_rng_state(), state)
    [chunk] = [event for event in events if isinstance(event, ChunkDone)]
    adversary = quick_adversary(model.cuda(), norm, eps, chunk_seed(0, 0), **effort, device="cuda")
    assert [stage.name for stage in chunk.stages[1:]] == KINDS
    assert chunk.stages[-1].standing == standing(adversary, x.cuda(), y.cuda())
