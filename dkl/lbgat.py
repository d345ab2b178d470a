"""Learnable boundary guided adversarial training: the method of `Train` for the objective LBGAT.

A clean teacher is trained from scratch beside the robust network. What it says about clean images is what the
robust network is to say about adversarial ones, and the distance moves both.

Source: Cui et al., arXiv:2011.11164.

Shapes: B batch, C channels, H, W pixels, K classes.
"""

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from dkl import losses
from dkl.adversary import Adversary
from dkl.awp import climbed
from dkl.execution import make_forward
from dkl.method import Shown, add_up_gradients, parts
from dkl.models import batch_mode, build, first_update
from dkl.objectives import LBGAT
from dkl.recipes import Train
from dkl.terms import Terms
from dkl.updates import Network, Seen, Update
from dkl.world import World


class _Part(NamedTuple):
    """Some images of a batch: all that passes the networks at once."""

    x_BCHW: Tensor
    x_adv_BCHW: Tensor
    y_B: Tensor
    share: float
    """Of the whole batch."""


def lbgat_terms(objective: LBGAT, nat_BK: Tensor | None, adv_BK: Tensor, teacher_BK: Tensor, y_B: Tensor) -> Terms:
    """The terms of the loss: logits of the robust network for clean images, which beta 0 does without, and for
    adversarial ones, and the teacher's for clean ones."""
    terms = {"boundary": losses.boundary(adv_BK, teacher_BK), "teacher": cross_entropy(teacher_BK, y_B)}
    if objective.beta:
        assert nat_BK is not None
        terms["kl"] = objective.beta * losses.kl(nat_BK, adv_BK)
    return terms


class BoundaryGuided:
    """The adversary of the robust network, and the teacher."""

    teacher: nn.Module

    def __init__(self, recipe: Train, *, channels: int, classes: int, device: str, world: World) -> None:
        assert isinstance(recipe.objective, LBGAT)
        self.recipe = recipe
        self.objective: LBGAT = recipe.objective
        self.adversary = Adversary(recipe, device)
        self.channels, self.classes = channels, classes
        self.device = device
        self.world = world

    def meet(self, model: nn.Module) -> Iterable[nn.Parameter]:
        teacher = build(self.objective.teacher, channels=self.channels, classes=self.classes)
        self.teacher = teacher.to(self.device)
        self._ask_teacher = make_forward(self.teacher, self.recipe, self.device, self.world)
        return self.teacher.parameters()

    def update(self, network: Network, optimizer: Optimizer, shown: Shown, *, micro_batch: int | None) -> Update:
        """See `Method`. The robust network sees adversarial images first, as in the original."""
        network.model.train()
        self.teacher.train()
        portions = self._portions(network, shown, micro_batch)
        seen, correct_teacher = Seen(), torch.zeros((), dtype=torch.float64, device=self.device)
        first = first_update(self.teacher) if shown.epoch == 1 and shown.number == 0 else nullcontext()
        with first, self._perturbed(network, portions, shown.epoch):
            optimizer.zero_grad()
            for part in portions:
                adv_BK = network.forward(part.x_adv_BCHW)
                # With beta 0 it moves running statistics and is counted; no gradient comes back through it.
                with torch.set_grad_enabled(self.objective.beta > 0):
                    nat_BK = network.forward(part.x_BCHW)
                teacher_BK = self._ask_teacher(part.x_BCHW)
                terms = lbgat_terms(self.objective, nat_BK, adv_BK, teacher_BK, part.y_B)
                loss = sum(terms.values(), start=adv_BK.new_zeros(()))
                torch.autograd.backward(part.share * loss)
                seen.add(part.y_B, part.share, loss, terms, nat_BK, adv_BK)
                correct_teacher += (teacher_BK.detach().argmax(1) == part.y_B).sum()
            add_up_gradients(optimizer, self.world)
            result = seen.total(self.world)
            if not math.isfinite(result.loss):
                raise FloatingPointError(f"loss is {result.loss}")
            optimizer.step()
        self.world.sum_(correct_teacher)
        return result._replace(correct_teacher=round(correct_teacher.item()))

    def _portions(self, network: Network, shown: Shown, micro_batch: int | None) -> list[_Part]:
        start_BCHW, found = self.adversary.start(shown), []
        for rows, share in parts(len(shown.y_B), micro_batch, self.world):
            x_BCHW, y_B = shown.x_BCHW[rows], shown.y_B[rows]
            x_adv_BCHW = self.adversary.attacked(
                network.model, network.forward, x_BCHW, y_B, start_BCHW[rows], shown.epoch
            )
            found.append(_Part(x_BCHW, x_adv_BCHW, y_B, share))
        return found

    def _perturbed(self, network: Network, portions: list[_Part], epoch: int) -> AbstractContextManager[None]:
        """Inside, the robust network's weights are moved towards a higher loss, where the recipe asks for AWP. The
        teacher's are not."""
        awp = self.recipe.awp
        if awp is None or epoch < awp.first_epoch:
            return nullcontext()
        losses_of_parts = [partial(self._loss, network, part) for part in portions]
        return climbed(network.model, losses_of_parts, gamma=awp.gamma, world=self.world)

    def _loss(self, network: Network, part: _Part) -> Tensor:
        """The part's share of the loss, as the robust network's weights decide it."""
        with torch.no_grad(), batch_mode(self.teacher):
            teacher_BK = self._ask_teacher(part.x_BCHW)
        adv_BK = network.forward(part.x_adv_BCHW)
        # Running statistics stay as they are in here, so beta 0 leaves the clean pass nothing to do.
        nat_BK = network.forward(part.x_BCHW) if self.objective.beta else None
        terms = lbgat_terms(self.objective, nat_BK, adv_BK, teacher_BK, part.y_B)
        return part.share * sum(terms.values(), start=adv_BK.new_zeros(()))

    # --- between the updates ------------------------------------------------------------------------------

    def eps(self, epoch: int) -> float:
        return self.adversary.threat(epoch).eps

    def end_epoch(self) -> None:
        """Nothing follows the epochs."""

    def state_dict(self) -> dict[str, Any]:
        return {"teacher": self.teacher.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.teacher.load_state_dict(state["teacher"])
