"""Who takes part in train_step.py, and what they all start from.

Shapes: B batch, C channels, H, W pixels, K classes.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from reference_step import ReferenceStep, Settings
from torch import Tensor, nn

from dkl.architectures import WideResNet, show_model
from dkl.averages import make_average
from dkl.catalog import resolve
from dkl.execution import make_network
from dkl.models import build
from dkl.objectives import IKL
from dkl.prior import ClassPrior
from dkl.recipes import StepEMA, Train
from dkl.updates import Batch, Plan, goes_adversarial_first, update
from dkl.world import ALONE

RECIPE = "ikl-at-cifar100-wrn-34-10"
EMA = StepEMA(decay=0.9996, start=0.0, ramp=False)
REFERENCE = "reference"

Step = Callable[[Tensor, Tensor, Tensor], float]
"""(x_BCHW, y_B, noise_BCHW) -> loss before the update"""


@dataclass(frozen=True)
class Setting:
    """What all contestants train."""

    model: WideResNet
    batch: int
    classes: int

    @property
    def network(self) -> str:
        return f"{show_model(self.model)}, batch {self.batch}"


@dataclass
class Contestant:
    name: str
    model: nn.Module
    step: Step
    passes: int
    """Forward passes that a step is worth: a backward pass to the images counts one, to weights too two."""
    resident: int = 0
    """Bytes that it takes on a GPU between steps."""


def the_recipe(setting: Setting, **changes: Any) -> Train:
    recipe = resolve(RECIPE, {"model": setting.model.model_dump(), "batch_size": setting.batch, **changes})
    assert isinstance(recipe, Train)
    return recipe


def inputs(setting: Setting, device: str) -> tuple[nn.Module, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Start weights, class prior (K, K), and images, labels and noise of a batch; the same in every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(setting.model, channels=3, classes=setting.classes)
        x_BCHW = torch.rand(setting.batch, 3, 32, 32)
        y_B = torch.randint(setting.classes, (setting.batch,))
        noise_BCHW = 0.001 * torch.randn_like(x_BCHW)
        prior_KK = (2 * torch.randn(setting.classes, setting.classes)).softmax(1)
    model, x_BCHW = model.to(device), x_BCHW.to(device)
    with torch.no_grad():
        for _ in range(20):
            model(x_BCHW)
    return model, prior_KK.to(device), (x_BCHW, y_B.to(device), noise_BCHW.to(device))


def the_reference(recipe: Train, model: nn.Module, prior_KK: Tensor) -> Step:
    objective, attack, threat, awp = recipe.objective, recipe.attack, recipe.threat, recipe.awp
    assert isinstance(objective, IKL)
    assert attack
    assert threat
    assert awp
    settings = Settings(
        wmse_weight=objective.wmse_weight,
        ce_weight=objective.ce_weight,
        prior_temperature=objective.prior_temperature,
        eps=threat.eps,
        step_size=attack.relative_step_size * threat.eps,
        steps=attack.steps,
        awp_gamma=awp.gamma,
        lr=recipe.optimizer.lr,
        momentum=recipe.optimizer.momentum,
        weight_decay=recipe.optimizer.weight_decay,
        ema_decay=EMA.decay,
    )
    return ReferenceStep(model, prior_KK, settings).step


def ours(recipe: Train, model: nn.Module, prior_KK: Tensor) -> Step:
    assert isinstance(recipe.objective, IKL)
    network = make_network(model, recipe, str(prior_KK.device), ALONE)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.optimizer.lr,
        momentum=recipe.optimizer.momentum,
        weight_decay=recipe.optimizer.weight_decay,
    )
    prior = ClassPrior(len(prior_KK), temperature=recipe.objective.prior_temperature, device=str(prior_KK.device))
    prior.rows = prior_KK.double()
    average = make_average(EMA)
    assert average
    plan = Plan(
        objective=recipe.objective,
        attack=recipe.attack,
        threat=recipe.threat,
        awp=recipe.awp,
        adversarial_first=goes_adversarial_first(recipe.objective, recipe.awp),
    )

    def step(x_BCHW: Tensor, y_B: Tensor, noise_BCHW: Tensor) -> float:
        x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
        seen = update(network, optimizer, prior, plan, Batch(x_BCHW[None], y_B, noise_BCHW[None]))
        average.after_update(model, 0, 1)
        return seen.loss

    return step


def all_contestants(setting: Setting, start: nn.Module, prior_KK: Tensor, own: Sequence[str]) -> list[Contestant]:
    """The reference and ours, each with its own copy of `start`; `own` are "PRECISION" or "PRECISION-COMPILE"."""
    recipe = the_recipe(setting)
    assert recipe.attack
    attack_steps = recipe.attack.steps
    found = []

    def enter(name: str, make: Callable[[Train, nn.Module, Tensor], Step], recipe: Train, passes: int) -> None:
        before = allocated(prior_KK.device.type)
        model = copy.deepcopy(start)
        contestant = Contestant(name, model, make(recipe, model, prior_KK), passes)
        contestant.resident = allocated(prior_KK.device.type) - before
        found.append(contestant)

    # Of the attack, and of two passes each with the gradients of weights for AWP and for the update.
    enter(REFERENCE, the_reference, recipe, 3 * attack_steps + 12)
    for name in own:
        precision, _, compiled = name.partition("-")
        changes = {"precision": precision, "compile": compiled or "off"}
        enter(name, ours, the_recipe(setting, **changes), 1 + 2 * attack_steps + 12)
    return found


def allocated(device: str) -> int:
    """Bytes of tensors on the GPU; 0 for a CPU."""
    return 0 if device == "cpu" else torch.cuda.memory_allocated()
