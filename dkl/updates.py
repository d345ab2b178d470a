"""One update of the weights per objective: plain functions of a model, its optimiser and a batch.

Shapes: B batch, C channels, H, W pixels, K classes.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, assert_never

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dkl import attacks, losses, weights
from dkl.documents import ThreatModel
from dkl.losses import ClassPrior
from dkl.models import eval_mode
from dkl.recipes import AWP, IKL, PGD


class Update(NamedTuple):
    """What one update saw, before it: the mean loss and how many images were classified correctly."""

    loss: float
    correct_nat: int
    correct_adv: int | None


def natural_update(model: nn.Module, optimizer: torch.optim.Optimizer, x_BCHW: Tensor, y_B: Tensor) -> Update:
    """One update on the cross-entropy of the clean images."""
    model.train()
    logits_BK = model(x_BCHW)
    loss = cross_entropy(logits_BK, y_B)
    _update(optimizer, loss)
    return Update(loss.item(), correct(logits_BK, y_B), None)


def ikl_update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    prior: ClassPrior,
    x_BCHW: Tensor,
    y_B: Tensor,
    *,
    objective: IKL,
    attack: PGD,
    threat: ThreatModel,
    awp: AWP | None,
    noise_BCHW: Tensor,
) -> Update:
    """One update on CE(nat, y) + IKL(nat, adv), the attack inside the ball of `threat`; `prior` counts the batch.

    With `awp` the update is computed at weights perturbed towards a higher loss. `noise_BCHW`, standard normal,
    starts the attack. The order of the forward passes matters to batch norm's running statistics: AWP clean, adv
    (put back afterwards), then the update's adv, clean.

    Source: arXiv:2305.13948, Algorithm 1 and the authors' settings.
    """
    prior_BK = prior.rows_for(y_B)
    x_adv_BCHW = _attacked(model, x_BCHW, prior_BK, attack, threat, noise_BCHW)
    model.train()

    def objective_of(logits_nat_BK: Tensor, logits_adv_BK: Tensor) -> Tensor:
        return cross_entropy(logits_nat_BK, y_B) + losses.ikl(
            logits_nat_BK,
            logits_adv_BK,
            prior_BK,
            wmse_weight=objective.wmse_weight,
            ce_weight=objective.ce_weight,
        )

    perturbation: AbstractContextManager[None] = nullcontext()
    if awp is not None:
        direction = weights.awp_direction(model, lambda: objective_of(model(x_BCHW), model(x_adv_BCHW)))
        perturbation = weights.perturbed(model, direction, awp.gamma)
    with perturbation:
        logits_adv_BK = model(x_adv_BCHW)
        logits_nat_BK = model(x_BCHW)
        loss = objective_of(logits_nat_BK, logits_adv_BK)
        _update(optimizer, loss)
    prior.update(logits_nat_BK, y_B)
    return Update(loss.item(), correct(logits_nat_BK, y_B), correct(logits_adv_BK, y_B))


def _attacked(
    model: nn.Module, x_BCHW: Tensor, prior_BK: Tensor, attack: PGD, threat: ThreatModel, noise_BCHW: Tensor
) -> Tensor:
    """x_adv that maximises the attack's loss against the clean logits, which stay the same throughout."""
    with eval_mode(model), torch.no_grad():
        logits_nat_BK = model(x_BCHW)

    def loss(logits_adv_BK: Tensor) -> Tensor:
        match attack.loss:
            case "ikl":
                return losses.ikl(logits_nat_BK, logits_adv_BK, prior_BK, wmse_weight=1.0, ce_weight=1.0)
            case "kl":
                return losses.kl(logits_nat_BK, logits_adv_BK)
            case _:
                assert_never(attack.loss)

    return attacks.perturb(attack, model, x_BCHW, threat, loss=loss, noise=noise_BCHW)


def _update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    if not torch.isfinite(loss):  # asked here, as a GPU is by then busy with the gradients
        raise FloatingPointError(f"loss is {loss.item()}")
    optimizer.step()


def correct(logits_BK: Tensor, y_B: Tensor) -> int:
    """How many images are classified as `y_B`."""
    return int((logits_BK.argmax(1) == y_B).sum())
