"""Diverse augmentations with joint adversarial training: the method of `Train` for the objective DAJAT.

A batch shows every image as it is (the base view) and through AutoAugment, several times. Augmented views share
all weights with the base view but the batch norms. These are thrown away at the end: what is published is the
network of the base view.

Source: Addepalli et al., arXiv:2210.15318, and its code.

Shapes: V views, B batch, C channels, H, W pixels, K classes. The base view comes first.
"""

import copy
import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from dkl import losses
from dkl.adversary import Adversary
from dkl.attacks.pgd import Forward
from dkl.awp import climbed
from dkl.execution import make_forward
from dkl.method import Shown, add_up_gradients, parts
from dkl.models import first_update
from dkl.objectives import DAJAT
from dkl.recipes import Train
from dkl.tensors import State
from dkl.terms import Terms
from dkl.updates import Network, Seen, Update
from dkl.world import World


class _Part(NamedTuple):
    """Some images of a batch, in all their views: all that is in memory at once."""

    x_VBCHW: Tensor
    x_adv_VBCHW: Tensor
    y_B: Tensor
    share: float
    """Of the whole batch."""


def dajat_terms(objective: DAJAT, nat: Sequence[Tensor], adv: Sequence[Tensor], y_B: Tensor) -> Terms:
    """The terms of the loss, of the logits (B, K) of each view's clean and adversarial images."""
    names = ["base", *(f"view_{number}" for number in range(1, len(nat)))]
    terms: Terms = {}
    for name, nat_BK, adv_BK in zip(names, nat, adv, strict=True):
        natural = cross_entropy(nat_BK, y_B, label_smoothing=objective.label_smoothing)
        terms[name] = (natural + objective.beta * losses.kl(nat_BK, adv_BK)) / len(nat)
    terms["consistency"] = objective.consistency * losses.jensen_shannon(nat)
    return terms


def twin_of(model: nn.Module) -> nn.Module:
    """A network with the parameters of `model`, the same objects, and batch norms of its own, equal at first."""
    own = {id(p) for norm in _batch_norms(model).values() for p in norm.parameters(recurse=False)}
    return copy.deepcopy(model, {id(p): p for p in model.parameters() if id(p) not in own})


def _batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    return {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}


class DiverseViews:
    """The adversary, and the network that augmented views pass."""

    twin: nn.Module

    def __init__(self, recipe: Train, *, device: str, world: World) -> None:
        assert isinstance(recipe.objective, DAJAT)
        self.recipe = recipe
        self.objective: DAJAT = recipe.objective
        self.adversary = Adversary(recipe, device)
        self.device = device
        self.world = world

    def meet(self, model: nn.Module) -> Iterable[nn.Parameter]:
        self.twin = twin_of(model)
        self._twin_forward = make_forward(self.twin, self.recipe, self.device, self.world)
        return [p for norm in _batch_norms(self.twin).values() for p in norm.parameters(recurse=False)]

    def update(self, network: Network, optimizer: Optimizer, shown: Shown, *, micro_batch: int | None) -> Update:
        """See `Method`. Views pass one after the other, each clean images first, as in the original."""
        network.model.train()
        self.twin.train()
        portions = self._portions(network, shown, micro_batch)
        seen = Seen()
        first = first_update(self.twin) if shown.epoch == 1 and shown.number == 0 else nullcontext()
        with first, self._perturbed(network, portions, shown.epoch):
            optimizer.zero_grad()
            for part in portions:
                nat, adv = [], []
                for (_, forward), x_BCHW, x_adv_BCHW in zip(
                    self._networks(network), part.x_VBCHW, part.x_adv_VBCHW, strict=True
                ):
                    nat.append(forward(x_BCHW))
                    adv.append(forward(x_adv_BCHW))
                terms = dajat_terms(self.objective, nat, adv, part.y_B)
                loss = sum(terms.values(), start=nat[0].new_zeros(()))
                torch.autograd.backward(part.share * loss)
                seen.add(part.y_B, part.share, loss, terms, nat[0], adv[0])
            add_up_gradients(optimizer, self.world)
            result = seen.total(self.world)
            if not math.isfinite(result.loss):
                raise FloatingPointError(f"loss is {result.loss}")
            optimizer.step()
        return result

    def _networks(self, network: Network) -> list[tuple[nn.Module, Forward]]:
        """What each view passes, and how it is called."""
        augmented = (self.twin, self._twin_forward)
        return [(network.model, network.forward), *[augmented] * self.objective.views]

    def _portions(self, network: Network, shown: Shown, micro_batch: int | None) -> list[_Part]:
        views, found = 1 + self.objective.views, []
        x_VBCHW, start_VBCHW = (
            images.view(views, -1, *images.shape[1:]) for images in (shown.x_BCHW, self.adversary.start(shown))
        )
        labels = shown.y_B.view(views, -1)[0]
        for rows, share in parts(len(labels), micro_batch, self.world):
            x_adv = [
                self.adversary.attacked(model, forward, x_BCHW[rows], labels[rows], start_BCHW[rows], shown.epoch)
                for (model, forward), x_BCHW, start_BCHW in zip(
                    self._networks(network), x_VBCHW, start_VBCHW, strict=True
                )
            ]
            found.append(_Part(x_VBCHW[:, rows], torch.stack(x_adv), labels[rows], share))
        return found

    def _perturbed(self, network: Network, portions: list[_Part], epoch: int) -> AbstractContextManager[None]:
        """Inside, the weights of all views are moved towards a higher loss of the base view, with AWP."""
        awp = self.recipe.awp
        if awp is None or epoch < awp.first_epoch:
            return nullcontext()
        losses_of_parts = [partial(self._base_loss, network, part) for part in portions]
        return climbed(network.model, losses_of_parts, gamma=awp.gamma, world=self.world)

    def _base_loss(self, network: Network, part: _Part) -> Tensor:
        """The part's share of the base view's loss; labels are never smoothed here, as in the original."""
        nat_BK, adv_BK = network.forward(part.x_VBCHW[0]), network.forward(part.x_adv_VBCHW[0])
        return part.share * (cross_entropy(nat_BK, part.y_B) + self.objective.beta * losses.kl(nat_BK, adv_BK))

    # --- between the updates ------------------------------------------------------------------------------

    def eps(self, epoch: int) -> float:
        return self.adversary.threat(epoch).eps

    def end_epoch(self) -> None:
        """Nothing follows the epochs."""

    def _own_state(self) -> State:
        """Of the twin, what it does not share."""
        norms = _batch_norms(self.twin)
        return {
            f"{prefix}.{name}": value
            for prefix, norm in norms.items()
            for name, value in norm.state_dict().items()
        }

    def state_dict(self) -> dict[str, Any]:
        return dict(self._own_state())

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in self._own_state().items():
            value.copy_(state[name])
