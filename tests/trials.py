"""Small models, small data, recipes and runs for the tests of evaluation, and pyautoattack called directly."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyautoattack import AutoAttack
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from torch import Tensor, nn

from dkl.architectures import CNN
from dkl.bench import batch_seed
from dkl.evaluate import evaluate
from dkl.events import BatchDone, EvaluateResult, Event, Finished
from dkl.models import build
from dkl.protocols import Evaluate
from dkl.recipes import RECIPE
from dkl.weights import LoadedModel

SHA256 = "0" * 64
KINDS = ["apgd-ce", "apgd-dlr", "fab", "apgd-t", "fab-t", "square"]


class Linear(nn.Module):
    """logits = (x - 1/2) W^T: under it the nearest adversarial image is known."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - 0.5) @ self.weight.T


def cnn(classes: int = 10, seed: int = 0) -> nn.Module:
    """An untrained network for 8 x 8 grey images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(CNN(width=4), channels=1, classes=classes).eval()


def loaded(model: nn.Module, *, classes: int = 10, channels: int = 1) -> LoadedModel:
    return LoadedModel(model.eval(), "CNN-4", channels, classes, "npz:tiny", SHA256)


def write_images(
    data_dir: Path, model: nn.Module, count: int, *, side: int = 8, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Random grey images as the test set npz:tiny, labelled as `model` sees them; also returned as tensors."""
    images = np.random.default_rng(seed).integers(0, 256, (count, side, side, 1), np.uint8)
    x = as_tensor(images)
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    np.savez(data_dir / "tiny_test.npz", image=images, label=y.numpy())
    return x, y


def as_tensor(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255).contiguous()


def evaluation(norm: str = "Linf", eps: float = 0.1, **changes: Any) -> Evaluate:
    document = {"kind": "evaluate", "dataset": "npz:tiny", "model": {"checkpoint": SHA256}}
    recipe = RECIPE.validate_python({**document, "threat": {"norm": norm, "eps": eps}, **changes})
    assert isinstance(recipe, Evaluate)
    return recipe


def judge(
    recipe: Evaluate, model: nn.Module | LoadedModel, data_dir: Path, workdir: Path | None = None, **about: Any
) -> list[Event]:
    """All events of an evaluation on the CPU; it works in `workdir`, else in data_dir / "work"."""
    checkpoint = model if isinstance(model, LoadedModel) else loaded(model, **about)
    folder = workdir or data_dir / "work"
    folder.mkdir(exist_ok=True)
    return list(evaluate(recipe, checkpoint, folder, device="cpu", data_dir=data_dir))


def result(events: Sequence[Event]) -> EvaluateResult:
    assert isinstance(events[-1], Finished)
    assert isinstance(events[-1].result, EvaluateResult)
    return events[-1].result


def batches(events: Sequence[Event]) -> list[BatchDone]:
    return [event for event in events if isinstance(event, BatchDone)]


def left(events: Sequence[Event], name: str | None = None) -> list[int]:
    """Positions of the images that stand after the attack called `name`, or at the end, ascending."""
    standing: dict[int, str] = {}
    for event in batches(events):
        standing |= dict(zip(event.images, event.standing, strict=True))
    if name is not None:
        last = max(event.stage for event in batches(events) if event.name == name)
        return left([event for event in batches(events) if event.stage <= last])
    return sorted(image for image, flag in standing.items() if flag == "1")


def quick_suite(*, steps: int, targets: int, queries: int, restarts: int = 1) -> list[dict[str, Any]]:
    """All six attacks with little effort, as a recipe has them."""
    gradient = {"steps": steps, "restarts": restarts}
    return [
        {"kind": "apgd-ce", **gradient},
        {"kind": "apgd-dlr", **gradient},
        {"kind": "fab", **gradient},
        {"kind": "apgd-t", **gradient, "targets": targets},
        {"kind": "fab-t", "steps": steps, "targets": targets},
        {"kind": "square", "queries": queries},
    ]


def quick_adversary(
    model: nn.Module,
    norm: str,
    eps: float,
    seed: int,
    *,
    steps: int,
    targets: int,
    queries: int,
    restarts: int = 1,
    device: str = "cpu",
) -> AutoAttack:
    """The same six attacks as a user of pyautoattack would set them up."""
    adversary = AutoAttack(
        model, norm=norm, eps=eps, seed=seed, version="custom", attacks=list(KINDS), device=device
    )
    common = {"norm": norm, "eps": eps, "n_iter": steps, "n_restarts": restarts, "device": device}
    adversary.apgd = APGDAttack(model, logger=adversary.logger, **common)
    adversary.apgd_targeted = APGDAttack_targeted(
        model, n_target_classes=targets, logger=adversary.logger, **common
    )
    adversary.fab.n_iter = steps
    adversary.fab.n_restarts = restarts
    adversary.fab.n_target_classes = targets
    adversary.square.n_queries = queries
    return adversary


def left_by_pyautoattack(
    model: nn.Module, recipe: Evaluate, x: Tensor, y: Tensor, **effort: int
) -> list[list[int]]:
    """Which images stand after each attack of KINDS, run one after the other on full batches of what is left."""
    alive, after = list(range(len(x))), []
    for kind in KINDS:
        still = []
        for number, first in enumerate(range(0, len(alive), recipe.chunk_size)):
            rows = alive[first : first + recipe.chunk_size]
            seed = batch_seed(recipe.seed, number)
            adversary = quick_adversary(model, recipe.threat.norm, recipe.threat.eps, seed, **effort)
            adversary.attacks_to_run = [kind]
            flags = standing(adversary, x[rows], y[rows])
            still += [row for row, flag in zip(rows, flags, strict=True) if flag == "1"]
        alive = still
        after.append(alive)
    return after


def standing(adversary: AutoAttack, x: Tensor, y: Tensor) -> str:
    """Which images still stand after pyautoattack, as a BatchDone says it."""
    with torch.random.fork_rng(devices=[]):
        _, y_adv = adversary.run_standard_evaluation(x, y, batch_size=len(x))
    return "".join("1" if flag else "0" for flag in (y_adv == y).tolist())
