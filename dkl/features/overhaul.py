"""OFD, the overhaul of feature distillation: pre-activations, but only where the teacher says something."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

_RARE = 0.001
"""Channels that are negative more rarely get three standard deviations for a margin."""


class Connectors(nn.Module):
    """A 1x1 convolution with batch norm per stage, from the student's channels to the teacher's."""

    def __init__(self, student_channels: Sequence[int], teacher_channels: Sequence[int]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            _connector(s, t) for s, t in zip(student_channels, teacher_channels, strict=True)
        )

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor], margins: Sequence[Tensor]) -> Tensor:
        """The distance over all stages, >= 0: the last stage counts once, each one before it half of the next.

        `student` and `teacher` are pre-activations (B, C, H, W), the last stage last; the teacher's maps are
        averaged to the student's size, or repeated where they are smaller. `margins`: what
        `margin_from_batch_norm` says, (1, C, 1, 1) per stage.

        Source: Heo et al., arXiv:1904.01866, Eq. 3.
        """
        total = student[0].new_zeros(())
        for place, (connect, s, t, margin) in enumerate(zip(self.stages, student, teacher, margins, strict=True)):
            pooled = adaptive_avg_pool2d(t.detach(), (s.shape[2], s.shape[3]))
            total = total + margin_distance(connect(s), pooled, margin) / 2 ** (len(self.stages) - 1 - place)
        return total


def margin_distance(student_BCHW: Tensor, teacher_BCHW: Tensor, margin_1C11: Tensor) -> Tensor:
    """The partial L2 distance to pre-activations, clipped from below at the margin: sum over C, H, W, mean over B.

        t' = max(t, m),      sum of (s - t')^2 where s > t' or t' > 0

    Where the teacher is inactive it does not matter how inactive the student is.
    """
    target_BCHW = torch.maximum(teacher_BCHW, margin_1C11)
    counts_BCHW = (student_BCHW > target_BCHW) | (target_BCHW > 0)
    return ((student_BCHW - target_BCHW).square() * counts_BCHW).sum() / len(student_BCHW)


def margin_from_batch_norm(weight_C: Tensor, bias_C: Tensor) -> Tensor:
    """What an inactive channel says on average: E[x | x < 0] for x ~ N(bias, |weight|), float64, (1, C, 1, 1).

        mu - sigma * phi(mu / sigma) / Phi(-mu / sigma),      -3 sigma where Phi(-mu / sigma) <= 0.001

    Source: Heo et al., arXiv:1904.01866, section 3.2, and the authors' code.
    """
    sigma, mu = weight_C.detach().double().abs(), bias_C.detach().double()
    ratio = mu / sigma.clamp_min(torch.finfo(torch.float64).tiny)
    negative = torch.special.ndtr(-ratio)
    density = (-0.5 * ratio.square()).exp() / math.sqrt(2 * math.pi)
    mean = mu - sigma * density / negative.clamp_min(_RARE)
    return torch.where(negative > _RARE, mean, -3 * sigma)[None, :, None, None]


def _connector(student_channels: int, teacher_channels: int) -> nn.Sequential:
    conv = nn.Conv2d(student_channels, teacher_channels, 1, bias=False)
    nn.init.normal_(conv.weight, std=math.sqrt(2 / teacher_channels))
    return nn.Sequential(conv, nn.BatchNorm2d(teacher_channels))
