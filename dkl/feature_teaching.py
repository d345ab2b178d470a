"""Distilling features: the method of `Distill` for objectives that compare what two networks see on the way.

Shapes: B batch, C channels, H, W pixels, K classes.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from dkl.batches import TrainingData
from dkl.comparisons import Comparison, comparison
from dkl.execution import in_precision
from dkl.lessons import OFD, FeatureLesson
from dkl.method import Shown, parts
from dkl.models import eval_mode, tapped
from dkl.recipes import Distill
from dkl.teacher import Teacher
from dkl.updates import Network, Seen, Update
from dkl.world import ALONE


class FeatureTeaching:
    """What the teacher's features teach, and the modules that make them comparable."""

    comparison: Comparison

    def __init__(self, recipe: Distill, teacher: Teacher, data: TrainingData, *, device: str) -> None:
        assert isinstance(recipe.objective, FeatureLesson)
        self.recipe = recipe
        self.lesson: FeatureLesson = recipe.objective
        self.teacher = teacher
        self.data = data
        self.device = device

    def meet(self, model: nn.Module) -> Iterable[nn.Parameter]:
        """See `Method`. ValueError where one of the networks does not offer what the objective compares."""
        x_BCHW = self.data.batches.batch(1, 0)[0][:2]
        with torch.no_grad(), eval_mode(model):
            student, teacher = tapped(model, x_BCHW), self.teacher.tapped(x_BCHW)
        norms = self.teacher.last_norms(x_BCHW) if isinstance(self.lesson, OFD) else ()
        self.comparison = comparison(
            self.lesson, student, teacher, norms, self.data, seed=self.recipe.seed, device=self.device
        )
        return self.comparison.parameters()

    @property
    def extra_parameters(self) -> int:
        """Numbers that are learnt or kept beside the student, and thrown away with the teacher."""
        return self.comparison.numbers

    def update(self, network: Network, optimizer: Optimizer, shown: Shown, *, micro_batch: int | None) -> Update:
        network.model.train()
        self.comparison.begin(shown.epoch, shown.number)
        seen = Seen()
        optimizer.zero_grad()
        for rows, share in parts(len(shown.y_B), micro_batch):
            y_B = shown.y_B[rows]
            logits_BK, compared = self._compared(network.model, shown.x_BCHW[rows], rows)
            terms = {
                "label": self.lesson.label_weight * cross_entropy(logits_BK, y_B),
                self.lesson.kind: self._warm(shown.epoch) * self.lesson.weight * compared,
            }
            loss = sum(terms.values(), start=logits_BK.new_zeros(()))
            torch.autograd.backward(share * loss)
            seen.add(y_B, share, loss, terms, logits_BK, None)
        result = seen.total(ALONE)
        if not math.isfinite(result.loss):
            raise FloatingPointError(f"loss is {result.loss}")
        optimizer.step()
        self.comparison.finish()
        return result

    def _compared(self, model: nn.Module, x_BCHW: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """The student's logits in float32 or finer, and its distance to the teacher."""
        with in_precision(self.recipe.precision, self.device):
            student, teacher = tapped(model, x_BCHW), self.teacher.tapped(x_BCHW)
        logits_BK = student.logits_BK.to(torch.promote_types(student.logits_BK.dtype, torch.float32))
        return logits_BK, self.comparison(student, teacher, rows)

    def _warm(self, epoch: int) -> float:
        return min(epoch / self.lesson.warmup, 1.0)

    def eps(self, epoch: int) -> float | None:
        return None

    def end_epoch(self) -> None:
        """Nothing follows the epochs."""

    def state_dict(self) -> dict[str, Any]:
        return self.comparison.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.comparison.load_state_dict(state)
