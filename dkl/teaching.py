"""Distilling logits: the method of `Distill`. A frozen teacher says, for every batch, what the student should.

With a threat the student meets adversarial images too, and should say about them what an adversarially trained
teacher says about the clean ones: robust soft labels (Zi et al., arXiv:2108.07969), with any of our objectives.

Shapes: B batch, C channels, H, W pixels, K classes.
"""

import math
import time
from collections.abc import Generator, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from dkl import attacks
from dkl.adversary import adversary_of
from dkl.attacks.pgd import Forward
from dkl.batches import Batches
from dkl.events import Progress
from dkl.lesson_terms import lesson_terms, normaliser_of, wmse_weight
from dkl.lessons import GKLKD, IKLKD, LogitLesson
from dkl.losses import soft_cross_entropy
from dkl.method import Shown, parts
from dkl.prior import ClassPrior
from dkl.recipes import Distill
from dkl.teacher import TeacherLogits
from dkl.terms import Terms
from dkl.updates import Network, Seen, Update
from dkl.world import ALONE


class Teaching:
    """What the teacher's logits teach, and the class prior that they make."""

    extra_parameters = 0
    """Nothing is learnt beside the student."""

    def __init__(self, recipe: Distill, teacher: TeacherLogits, *, classes: int, device: str) -> None:
        assert isinstance(recipe.objective, LogitLesson)
        self.recipe = recipe
        self.lesson: LogitLesson = recipe.objective
        self.teacher = teacher
        self.device = device
        self.adversary = adversary_of(recipe, device)
        self.prior: ClassPrior | None = None
        self._prior_is_known = True
        """Whether it holds what it should in the first epoch."""
        if isinstance(self.lesson, IKLKD | GKLKD) and self.lesson.prior != "none":
            self.prior = ClassPrior(classes, temperature=self.lesson.prior_temperature, device=device)
            self._prior_is_known = self.lesson.prior == "previous-epoch"

    def meet(self, model: nn.Module) -> Iterable[nn.Parameter]:
        return ()

    def get_ready(self, batches: Batches) -> Generator[Progress, None, None]:
        """Compute the prior of the first epoch, where the recipe asks for it and it is not known yet."""
        if self._prior_is_known or self.prior is None:
            return
        began, images = time.monotonic(), 0
        for index in range(len(batches)):
            x_BCHW, y_B = batches.batch(1, index)
            shown = Shown(1, index, x_BCHW.contiguous(memory_format=torch.channels_last), y_B)
            self.prior.update(self.teacher.logits(shown), shown.y_B)
            images += len(shown.y_B)
            seconds = max(time.monotonic() - began, 1e-9)
            done, total = index + 1, len(batches)
            left = (total - done) * seconds / done
            yield Progress(phase="class prior", done=done, total=total, rate=images / seconds, eta_seconds=left)
        self.prior.end_epoch()
        self._prior_is_known = True

    # --- one update ---------------------------------------------------------------------------------------

    def update(self, network: Network, optimizer: Optimizer, shown: Shown, *, micro_batch: int | None) -> Update:
        network.model.train()
        teacher_BK = self.teacher.logits(shown)
        prior_BK = None if self.prior is None else self.prior.rows_for(shown.y_B)
        weight_BK = wmse_weight(self.lesson, teacher_BK, prior_BK)
        normaliser = normaliser_of(self.lesson, weight_BK)
        start_BCHW = None if self.adversary is None else self.adversary.start(shown)
        seen = Seen()
        optimizer.zero_grad()
        for rows, share in parts(len(shown.y_B), micro_batch):
            x_BCHW, y_B, part_BK = shown.x_BCHW[rows], shown.y_B[rows], teacher_BK[rows]
            part_weight_BK = None if weight_BK is None else weight_BK[rows]
            adv_BK = None
            if start_BCHW is not None:
                x_adv_BCHW = self._attacked(network, x_BCHW, y_B, part_BK, start_BCHW[rows], shown.epoch)
                adv_BK = network.forward(x_adv_BCHW)
            nat_BK = network.forward(x_BCHW)
            terms = {"label": self.lesson.label_weight * cross_entropy(nat_BK if adv_BK is None else adv_BK, y_B)}
            for name, term in self._taught(nat_BK, adv_BK, part_BK, y_B, part_weight_BK, normaliser).items():
                terms[name] = self._warm(shown.epoch) * term
            loss = sum(terms.values(), start=nat_BK.new_zeros(()))
            torch.autograd.backward(share * loss)
            seen.add(y_B, share, loss, terms, nat_BK, adv_BK)
        result = seen.total(ALONE)
        if not math.isfinite(result.loss):
            raise FloatingPointError(f"loss is {result.loss}")
        optimizer.step()
        if self.prior is not None and self._follows_the_epochs:  # at last: a batch that failed is tried again
            self.prior.update(teacher_BK, shown.y_B)
        return result

    def _taught(
        self,
        nat_BK: Tensor,
        adv_BK: Tensor | None,
        teacher_BK: Tensor,
        y_B: Tensor,
        weight_BK: Tensor | None,
        normaliser: Tensor | None,
    ) -> Terms:
        clean = lesson_terms(self.lesson, nat_BK, teacher_BK, y_B, weight_BK, normaliser)
        if adv_BK is None:
            return clean
        robust = lesson_terms(self.lesson, adv_BK, teacher_BK, y_B, weight_BK, normaliser)
        return {name: robust[name] + self.recipe.clean_weight * term for name, term in clean.items()}

    def _warm(self, epoch: int) -> float:
        return min(epoch / self.lesson.warmup, 1.0)

    # --- the adversary ------------------------------------------------------------------------------------

    def _attacked(
        self, network: Network, x_BCHW: Tensor, y_B: Tensor, teacher_BK: Tensor, start_BCHW: Tensor, epoch: int
    ) -> Tensor:
        """x_adv that leads the student away from the label, or from what the teacher says about x."""
        assert self.adversary is not None
        attack, threat = self.adversary.attack, self.adversary.threat(epoch)

        def loss(adv_BK: Tensor) -> Tensor:
            away = cross_entropy(adv_BK, y_B) if attack.loss == "ce" else soft_cross_entropy(teacher_BK, adv_BK)
            return away * len(y_B)

        forward: Forward = network.forward
        with attacks.attack_mode(network.model, attack.mode):
            x_adv = attacks.perturb(attack, forward, x_BCHW, threat, loss=loss, start_BCHW=start_BCHW)
        return x_adv.detach()

    # --- between the updates ------------------------------------------------------------------------------

    @property
    def _follows_the_epochs(self) -> bool:
        return isinstance(self.lesson, IKLKD | GKLKD) and self.lesson.prior == "previous-epoch"

    def eps(self, epoch: int) -> float | None:
        return None if self.adversary is None else self.adversary.threat(epoch).eps

    def end_epoch(self) -> None:
        if self.prior is not None and self._follows_the_epochs:
            self.prior.end_epoch()

    def state_dict(self) -> dict[str, Any]:
        return {} if self.prior is None else self.prior.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.prior is not None:
            self.prior.load_state_dict(state)
            self._prior_is_known = True
