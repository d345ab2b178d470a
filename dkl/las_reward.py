"""What attack strategies earn: the loss they cause, and what the model is like one step later.

Shapes: B batch, C channels, H, W pixels, K classes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dkl import attacks
from dkl.models import batch_mode
from dkl.objectives import LASAT, LASTRADES
from dkl.strategy import Reward
from dkl.terms import attacked_loss, natural_terms, robust_terms, sees_clean_images
from dkl.updates import Network, Plan
from dkl.world import World

Parts = Sequence[tuple[slice, float]]
"""Rows that pass the network at once, each with their share of the whole batch."""


class Attacked(NamedTuple):
    """A batch whose images were attacked by their strategies, in this process's rows at least."""

    x_BCHW: Tensor
    x_adv_BCHW: Tensor
    y_B: Tensor
    beta_B: Tensor | None
    """Of LAS-TRADES."""


class Earned(NamedTuple):
    """By each image of the whole batch, the same in all processes; float64, shape (B,)."""

    loss_B: Tensor
    """Cross-entropy of the adversarial image, at most `largest_loss`."""
    robust_B: Tensor
    clean_B: Tensor
    """1 or 0, after the step."""
    total_B: Tensor
    """loss + robust weight * robust + clean weight * clean, as it is."""


def earned(
    network: Network,
    plan: Plan,
    batch: Attacked,
    starts: Sequence[Tensor],
    *,
    reward: Reward,
    lr: float,
    parts: Parts,
    world: World,
) -> Earned:
    """The rewards of a batch's strategies; `starts` are where the PGD begins, one tensor per restart.

    The model takes the step weights - lr * gradient of the objective's mean loss, without momentum or weight
    decay, and has its old weights again in the end, bit for bit.
    """
    found_B3 = torch.zeros(len(batch.y_B), 3, dtype=torch.float64, device=batch.y_B.device)
    gradients: list[Tensor] = []
    learnt = [parameter for parameter in network.model.parameters() if parameter.requires_grad]
    with batch_mode(network.model):
        for rows, share in parts:
            loss, loss_B = _losses(network, plan, batch, rows)
            found_B3[rows, 0] = loss_B.double().clamp_max(reward.largest_loss)
            part = torch.autograd.grad(share * loss, learnt)
            gradients = list(torch._foreach_add(gradients, part)) if gradients else list(part)
    world.sum_(*gradients)
    with stepped(learnt, gradients, lr), attacks.attack_mode(network.model, "eval"):
        for rows, _ in parts:
            x_BCHW, y_B = batch.x_BCHW[rows], batch.y_B[rows]
            robust_B = _withstands(network, plan, x_BCHW, y_B, [start[rows] for start in starts])
            found_B3[rows, 1] = robust_B.double()
            found_B3[rows, 2] = _is_right(network, x_BCHW, y_B).double()
    world.sum_(found_B3)
    loss_B, robust_B, clean_B = found_B3.unbind(1)
    return Earned(loss_B, robust_B, clean_B, loss_B + reward.robust * robust_B + reward.clean * clean_B)


def _losses(network: Network, plan: Plan, batch: Attacked, rows: slice) -> tuple[Tensor, Tensor]:
    """The objective's mean loss over some images, and the cross-entropy of each adversarial one."""
    objective = plan.objective
    assert isinstance(objective, LASAT | LASTRADES)
    y_B = batch.y_B[rows]
    beta_B = None if batch.beta_B is None else batch.beta_B[rows]
    nat_BK = network.forward(batch.x_BCHW[rows]) if sees_clean_images(objective) else None
    adv_BK = network.forward(batch.x_adv_BCHW[rows])
    terms = natural_terms(objective, nat_BK, y_B) | robust_terms(
        objective, nat_BK, adv_BK, y_B, None, None, beta_B
    )
    return sum(terms.values(), start=adv_BK.new_zeros(())), cross_entropy(adv_BK.detach(), y_B, reduction="none")


@contextmanager
def stepped(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor], lr: float) -> Iterator[None]:
    """Inside, the parameters are one step of plain gradient descent further; afterwards exactly what they were."""
    before = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        torch._foreach_add_(list(parameters), list(gradients), alpha=-lr)
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list(parameters), before)


def _withstands(network: Network, plan: Plan, x_BCHW: Tensor, y_B: Tensor, starts: Sequence[Tensor]) -> Tensor:
    """Which images the model still classifies as `y_B` after PGD from every start."""
    assert plan.attack is not None
    assert plan.threat is not None
    pgd = plan.attack.model_copy(update={"loss": "ce", "start": "uniform"})
    stands_B = torch.ones_like(y_B, dtype=torch.bool)
    for start_BCHW in starts:
        x_adv_BCHW = attacks.perturb(
            pgd,
            network.forward,
            x_BCHW,
            plan.threat,
            loss=lambda adv_BK: attacked_loss(pgd, None, adv_BK, y_B, None),
            start_BCHW=start_BCHW,
        )
        stands_B &= _is_right(network, x_adv_BCHW, y_B)
    return stands_B


@torch.no_grad()
def _is_right(network: Network, x_BCHW: Tensor, y_B: Tensor) -> Tensor:
    return network.forward(x_BCHW).argmax(1) == y_B


def normalised(reward_B: Tensor) -> Tensor:
    """Less their mean, over their standard deviation; zeros where all are equal."""
    centred_B = reward_B - reward_B.mean()
    return centred_B / centred_B.square().mean().sqrt().clamp_min(1e-8)
