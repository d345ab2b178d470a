"""One update of the weights, whatever the objective: attack, perturb the weights, descend.

Nothing is computed twice: clean logits once per attack, no gradients of weights while attacking, no second network
for AWP. A batch may pass in parts (`micro_batch`) and be shared by several processes; the loss stays its mean.

Shapes: V views, B batch, C channels, H, W pixels, K classes. Rows of a batch with two views come view first.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dkl import attacks
from dkl.attacks.pgd import Forward
from dkl.awp import climbed
from dkl.documents import ThreatModel
from dkl.objectives import AWP, GKL, IKL, PGD, OfOneNetwork
from dkl.prior import ClassPrior
from dkl.terms import (
    Terms,
    attacked_loss,
    has_prior,
    natural_terms,
    normaliser_of,
    robust_terms,
    sees_clean_images,
)
from dkl.world import ALONE, World


@dataclass(frozen=True)
class Network:
    """A model, and how to call it."""

    model: nn.Module
    forward: Forward
    """x_BCHW -> logits_BK, at least float32."""
    shared_forward: Forward
    """The same, for the pass whose gradients all processes add up."""
    accumulating: Callable[[], AbstractContextManager[None]] = nullcontext
    """Inside, backward passes add to the gradients without asking the other processes."""


@dataclass(frozen=True)
class Plan:
    """What the updates of an epoch do."""

    objective: OfOneNetwork
    attack: PGD | None = None
    threat: ThreatModel | None = None
    """With the epoch's radius."""
    awp: AWP | None = None
    adversarial_first: bool = False
    """Whether the adversarial images pass before the clean ones; running batch-norm statistics depend on it."""
    view_weights: tuple[float, ...] = (1.0,)
    """Of the robust term of each view."""


class Batch(NamedTuple):
    """The images of one update, the same in every process."""

    x_VBCHW: Tensor
    y_B: Tensor
    start_VBCHW: Tensor | None
    """Where the attack begins, as a difference to x; None for natural training."""
    x_adv_VBCHW: Tensor | None = None
    """Adversarial images that were made already, for this process's rows at least; the attack is then left out."""
    beta_B: Tensor | None = None
    """Of each image, for the objectives that have it so."""


class Update(NamedTuple):
    """What one update saw, before it: means over the batch, and how many images were classified correctly."""

    loss: float
    terms: dict[str, float]
    correct_nat: int | None
    """Of the first view; None where the objective never looks at clean images."""
    correct_adv: int | None
    correct_teacher: int | None = None
    """Of a teacher that learns along."""


def goes_adversarial_first(objective: OfOneNetwork, awp: AWP | None) -> bool:
    """The order of the originals: the DKL authors and the AWP repository pass adversarial images first."""
    return isinstance(objective, IKL | GKL) or awp is not None


class _Part(NamedTuple):
    """Some images of a batch: all that passes the network at once."""

    x_BCHW: Tensor
    """View first, as are all rows here but those of the labels."""
    y_B: Tensor
    """Once per image."""
    prior_BK: Tensor | None
    start_BCHW: Tensor | None
    x_adv_BCHW: Tensor | None
    beta_B: Tensor | None
    """Once per image."""
    share: float
    """The part's images over the whole batch's."""


def update(
    network: Network,
    optimizer: torch.optim.Optimizer,
    prior: ClassPrior,
    plan: Plan,
    batch: Batch,
    *,
    world: World = ALONE,
    micro_batch: int | None = None,
) -> Update:
    """Move the weights once, on the mean loss of `batch`; `prior` counts its clean predictions.

    With `plan.awp` the gradient is that at weights perturbed towards a higher loss. `micro_batch` limits the
    images that pass at once; batch norms then see the parts one by one. Raises FloatingPointError instead of the
    optimiser's step where the loss is not finite.

    Source: arXiv:2305.13948, Algorithm 1, which has all others as special cases.
    """
    network.model.train()
    views = len(batch.x_VBCHW)
    normaliser = normaliser_of(plan.objective, prior.rows_for(batch.y_B)) if has_prior(plan.objective) else None
    parts = list(_parts(batch, plan, prior, world, micro_batch))
    adversarial = [_attacked(network, plan, part) for part in parts]

    def loss_of(part: _Part, x_adv_BCHW: Tensor | None) -> Tensor:
        nat_BK, adv_BK = _logits(network.forward, plan, part.x_BCHW, x_adv_BCHW)
        terms = _terms(plan, nat_BK, adv_BK, part, normaliser, view_weights=(1 / views,) * views)
        return part.share * _total(terms)

    perturbation: AbstractContextManager[None] = nullcontext()
    if plan.awp is not None:
        losses = [partial(loss_of, part, x_adv) for part, x_adv in zip(parts, adversarial, strict=True)]
        perturbation = climbed(network.model, losses, gamma=plan.awp.gamma, world=world)

    seen = Seen()
    with perturbation:
        optimizer.zero_grad()
        for part, x_adv_BCHW in zip(parts, adversarial, strict=True):
            last = part is parts[-1]
            with nullcontext() if last else network.accumulating():
                nat_BK, adv_BK = _logits(network.shared_forward, plan, part.x_BCHW, x_adv_BCHW)
                terms = _terms(plan, nat_BK, adv_BK, part, normaliser, view_weights=plan.view_weights)
                loss = _total(terms)
                # Processes take the mean of their gradients.
                torch.autograd.backward(part.share * world.size * loss)
            seen.add(part.y_B, part.share, loss, terms, nat_BK, adv_BK)
        result = seen.total(world)
        if not math.isfinite(result.loss):
            raise FloatingPointError(f"loss is {result.loss}")
        optimizer.step()
    if has_prior(plan.objective):  # at last, so that a batch that failed half-way can be tried again
        for part, nat_BK in zip(parts, seen.clean, strict=True):
            prior.update(nat_BK, part.y_B, world)
    return result


def _parts(batch: Batch, plan: Plan, prior: ClassPrior, world: World, micro_batch: int | None) -> Iterator[_Part]:
    """This process's images, at most `micro_batch` at a time, in parts of about equal size."""
    total = len(batch.y_B)
    own = world.share(total)
    count = own.stop - own.start
    parts = math.ceil(count / (micro_batch or count))
    for index in range(parts):
        rows = slice(own.start + count * index // parts, own.start + count * (index + 1) // parts)
        y_B = batch.y_B[rows]
        yield _Part(
            x_BCHW=batch.x_VBCHW[:, rows].flatten(0, 1),
            y_B=y_B,
            prior_BK=prior.rows_for(y_B) if has_prior(plan.objective) else None,
            start_BCHW=None if batch.start_VBCHW is None else batch.start_VBCHW[:, rows].flatten(0, 1),
            x_adv_BCHW=None if batch.x_adv_VBCHW is None else batch.x_adv_VBCHW[:, rows].flatten(0, 1),
            beta_B=None if batch.beta_B is None else batch.beta_B[rows],
            share=len(y_B) / total,
        )


def _attacked(network: Network, plan: Plan, part: _Part) -> Tensor | None:
    """x_adv that maximises the attack's loss; the clean logits it is compared with stay the same throughout."""
    if part.x_adv_BCHW is not None:
        return part.x_adv_BCHW
    attack, threat = plan.attack, plan.threat
    if attack is None or threat is None:
        return None
    assert part.start_BCHW is not None
    views = len(plan.view_weights)
    y_B = part.y_B.repeat(views)
    prior_BK = None if part.prior_BK is None else part.prior_BK.repeat(views, 1)
    with attacks.attack_mode(network.model, attack.mode):
        nat_BK = None
        if attack.loss != "ce":
            with torch.no_grad():
                nat_BK = network.forward(part.x_BCHW)
        return attacks.perturb(
            attack,
            network.forward,
            part.x_BCHW,
            threat,
            loss=lambda adv_BK: attacked_loss(attack, nat_BK, adv_BK, y_B, prior_BK, plan.objective),
            start_BCHW=part.start_BCHW,
        ).detach()


def _logits(
    forward: Forward, plan: Plan, x_BCHW: Tensor, x_adv_BCHW: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Clean and adversarial logits, as far as the objective asks for them, in two passes.

    One pass over both would mix their batch-norm statistics.
    """
    if x_adv_BCHW is None:
        return forward(x_BCHW), None
    if not sees_clean_images(plan.objective):
        return None, forward(x_adv_BCHW)
    if plan.adversarial_first:
        adv_BK = forward(x_adv_BCHW)
        return forward(x_BCHW), adv_BK
    nat_BK = forward(x_BCHW)
    return nat_BK, forward(x_adv_BCHW)


def _terms(
    plan: Plan,
    nat_BK: Tensor | None,
    adv_BK: Tensor | None,
    part: _Part,
    normaliser: Tensor | None,
    *,
    view_weights: Sequence[float],
) -> Terms:
    """The terms of a part's mean loss: natural ones over all rows, robust ones a weighted sum over the views."""
    images, y_rows_B = len(part.y_B), part.y_B.repeat(len(view_weights))
    terms = natural_terms(plan.objective, nat_BK, y_rows_B)
    if adv_BK is None:
        return terms
    for view, weight in enumerate(view_weights):
        rows = slice(view * images, (view + 1) * images)
        nat_rows_BK = None if nat_BK is None else nat_BK[rows]
        robust = robust_terms(
            plan.objective, nat_rows_BK, adv_BK[rows], part.y_B, part.prior_BK, normaliser, part.beta_B
        )
        for name, term in robust.items():
            terms[name] = weight * term if name not in terms else terms[name] + weight * term
    return terms


def _total(terms: Terms) -> Tensor:
    first, *others = terms.values()
    return sum(others, start=first)


class Seen:
    """Sums over the parts of a batch, kept on the device: to ask for a number makes a GPU wait."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._sums: Tensor | None = None
        self.clean: list[Tensor] = []
        """Clean logits of each part's first view, where there are any."""
        self._natural = self._adversarial = False

    def add(
        self,
        y_B: Tensor,
        share: float,
        loss: Tensor,
        terms: Terms,
        nat_BK: Tensor | None,
        adv_BK: Tensor | None,
    ) -> None:
        """A part of the batch, `share` of it: its mean loss and terms, and its logits, the first view's first."""
        self._names = list(terms)
        if nat_BK is not None:
            self.clean.append(nat_BK[: len(y_B)].detach())
        self._natural, self._adversarial = nat_BK is not None, adv_BK is not None
        means = torch.stack([loss, *terms.values()]).detach().double() * share
        counts = torch.stack([_correct(logits_BK, y_B) for logits_BK in (nat_BK, adv_BK)])
        sums = torch.cat([means, counts])
        self._sums = sums if self._sums is None else self._sums + sums

    def total(self, world: World) -> Update:
        """Over all processes."""
        assert self._sums is not None
        world.sum_(self._sums)
        loss, *terms, correct_nat, correct_adv = self._sums.tolist()
        return Update(
            loss=loss,
            terms=dict(zip(self._names, terms, strict=True)),
            correct_nat=round(correct_nat) if self._natural else None,
            correct_adv=round(correct_adv) if self._adversarial else None,
        )


def _correct(logits_BK: Tensor | None, y_B: Tensor) -> Tensor:
    """How many images of the first view are classified as `y_B`."""
    if logits_BK is None:
        return torch.zeros((), dtype=torch.float64, device=y_B.device)
    return (logits_BK[: len(y_B)].detach().argmax(1) == y_B).sum().double()
