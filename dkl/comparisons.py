"""The feature lessons as modules: how each compares what two networks offer, with what it learns beside them.

Channels, sizes and numbers of stages come from one pass of both networks, never from a table of pairs. Stages are
paired from the last one back; where a network has more stages than the other, its first ones take no part, nor do
the stems. So are the papers' networks paired in their authors' code, but for ResNet-50 and MobileNetV1 in
mdistiller, which takes MobileNet's first stage for its stem: AT then compares each stage with one of the teacher's
of twice the side, and OFD leaves a stage out.

Shapes: B images of a pass, C channels, H, W the map, K classes.
"""

from collections.abc import Sequence
from typing import assert_never

import torch
from torch import Tensor, nn

from dkl.batches import TrainingData
from dkl.draws import Draw, generator
from dkl.features.attention import attention_transfer
from dkl.features.contrastive import Contrast, Negatives
from dkl.features.overhaul import Connectors, margin_from_batch_norm
from dkl.features.review import Review
from dkl.lessons import AT, CRD, OFD, FeatureLesson, ReviewKD
from dkl.models import Norm, Taps


class Comparison(nn.Module):
    """A distance of two networks' features, with parameters of its own.

    Its forward takes the student's taps, the teacher's taps and the slice of the batch that they are of, and gives
    the mean over these images: a scalar in float32 or finer, without the lesson's weight.
    """

    def begin(self, epoch: int, number: int) -> None:
        """What follows is of this batch, `epoch` from 1 and `number` from 0."""

    def finish(self) -> None:
        """The weights were moved."""

    @property
    def numbers(self) -> int:
        """So many are learnt or kept for training alone."""
        return sum(parameter.numel() for parameter in self.parameters())


def comparison(
    lesson: FeatureLesson,
    student: Taps,
    teacher: Taps,
    norms: Sequence[Norm],
    data: TrainingData,
    *,
    seed: int,
    device: str,
) -> Comparison:
    """What `lesson` compares of networks that offer `student` and `teacher` for some images, in new modules on the
    device, drawn from torch's global generator. `norms` are the teacher's; only OFD asks for them."""
    return _built(lesson, student, teacher, norms, data, seed, device).to(device)


def _built(
    lesson: FeatureLesson,
    student: Taps,
    teacher: Taps,
    norms: Sequence[Norm],
    data: TrainingData,
    seed: int,
    device: str,
) -> Comparison:
    match lesson:
        case AT():
            return _Attention()
        case OFD():
            return _Overhaul(student, teacher, norms)
        case CRD():
            return _Contrastive(lesson, student, teacher, data, seed=seed, device=device)
        case ReviewKD():
            return _Reviewing(lesson, student, teacher)
        case _:
            assert_never(lesson)


def _paired(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The last stages that both have, in float32 or finer."""
    count = min(len(student), len(teacher))
    return [_exact(s) for s in student[-count:]], [_exact(t) for t in teacher[-count:]]


def _exact(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _Attention(Comparison):
    def forward(self, student: Taps, teacher: Taps, rows: slice) -> Tensor:
        return attention_transfer(*_paired(student.maps[1:], teacher.maps[1:]))


class _Overhaul(Comparison):
    def __init__(self, student: Taps, teacher: Taps, norms: Sequence[Norm]) -> None:
        super().__init__()
        own, theirs = _paired(student.preacts, teacher.preacts)
        self.connectors = Connectors([s.shape[1] for s in own], [t.shape[1] for t in theirs])
        self.stages = len(own)
        for place, norm in enumerate(norms[-self.stages :]):
            margin_1C11 = margin_from_batch_norm(norm.weight_C.cpu(), norm.bias_C.cpu()).float()
            self.register_buffer(f"margin_{place}", margin_1C11, persistent=False)

    def forward(self, student: Taps, teacher: Taps, rows: slice) -> Tensor:
        margins = [self.get_buffer(f"margin_{place}") for place in range(self.stages)]
        loss: Tensor = self.connectors(*_paired(student.preacts, teacher.preacts), margins)
        return loss


class _Reviewing(Comparison):
    """Of the stages, and of the pooled features as a last one with a map of 1 x 1."""

    def __init__(self, lesson: ReviewKD, student: Taps, teacher: Taps) -> None:
        super().__init__()
        self.before_activation = lesson.before_activation
        own, theirs = self._levels(student, teacher)
        self.review = Review(
            [s.shape[1] for s in own],
            [t.shape[1] for t in theirs],
            [s.shape[3] for s in own],
            [t.shape[3] for t in theirs],
        )

    def forward(self, student: Taps, teacher: Taps, rows: slice) -> Tensor:
        loss: Tensor = self.review(*self._levels(student, teacher))
        return loss

    def _levels(self, student: Taps, teacher: Taps) -> tuple[list[Tensor], list[Tensor]]:
        own = student.preacts if self.before_activation else student.maps[1:]
        pooled = [taps.pooled_BW[:, :, None, None] for taps in (student, teacher)]
        return _paired([*own, pooled[0]], [*teacher.preacts, pooled[1]])


class _Contrastive(Comparison):
    """Negatives follow from (seed, epoch, number of the batch). Embeddings are remembered after the update: all
    parts of a batch are compared with the same memory, and a batch that failed half-way can be tried again."""

    positions_B: Tensor
    candidates_BQ: Tensor

    def __init__(
        self, lesson: CRD, student: Taps, teacher: Taps, data: TrainingData, *, seed: int, device: str
    ) -> None:
        super().__init__()
        self.contrast = Contrast(
            student.pooled_BW.shape[1],
            teacher.pooled_BW.shape[1],
            len(data.labels),
            width=lesson.width,
            temperature=lesson.temperature,
            momentum=lesson.momentum,
        )
        self.negatives = lesson.negatives
        self.batches = data.batches
        self.seed = seed
        self.device = device
        self.labels_N = torch.from_numpy(data.labels).to(device)
        self.others = Negatives(self.labels_N)
        self._embedded: list[tuple[Tensor, Tensor]] = []

    def begin(self, epoch: int, number: int) -> None:
        self.positions_B = self.batches.positions(epoch, number).to(self.device)
        random = generator(self.device, Draw.NEGATIVES, self.seed, epoch, number)
        negatives_BQ = self.others.draw(self.labels_N[self.positions_B], self.negatives, random)
        self.candidates_BQ = torch.cat([self.positions_B[:, None], negatives_BQ], dim=1)
        self._embedded = []

    def forward(self, student: Taps, teacher: Taps, rows: slice) -> Tensor:
        embedded = self.contrast.embed(_exact(student.pooled_BW), _exact(teacher.pooled_BW))
        self._embedded.append((embedded[0].detach(), embedded[1].detach()))
        return self.contrast.compare(*embedded, self.candidates_BQ[rows])

    def finish(self) -> None:
        s_BD, t_BD = (torch.cat(parts) for parts in zip(*self._embedded, strict=True))
        self.contrast.remember(s_BD, t_BD, self.positions_B)

    @property
    def numbers(self) -> int:
        memory = self.contrast.memory_student_ND.numel() + self.contrast.memory_teacher_ND.numel()
        return super().numbers + memory
