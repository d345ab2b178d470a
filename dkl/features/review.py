"""ReviewKD, knowledge review: each stage of the student learns from the teacher's stages up to it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate, mse_loss

_LEVELS = (4, 2, 1)
_WIDEST = 512
"""Channels of the fused maps, at most."""


class Review(nn.Module):
    """Fuses the student's stages from the last to the first, and compares each with the teacher's."""

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        student_sides: Sequence[int],
        teacher_sides: Sequence[int],
    ) -> None:
        """Channels and sides of the maps of each stage, the first stage first; equally many of both networks."""
        super().__init__()
        middle = min(_WIDEST, student_channels[-1])
        last = len(student_channels) - 1
        self.fusions = nn.ModuleList(
            Fusion(s, middle, t, fuses=place < last)
            for place, (s, t) in enumerate(zip(student_channels, teacher_channels, strict=True))
        )
        self.student_sides, self.teacher_sides = tuple(student_sides), tuple(teacher_sides)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The hierarchical context loss of all stages, >= 0; maps (B, C, H, W), the first stage first.

        Source: Chen et al., arXiv:2104.09044, Eq. 7.
        """
        residual: Tensor | None = None
        fused = []
        for place in reversed(range(len(self.fusions))):
            out, residual = self.fusions[place](
                student[place], residual, self.student_sides[place], self.teacher_sides[place]
            )
            fused.append(out)
        return hierarchical_context(fused[::-1], [t.detach() for t in teacher])


class Fusion(nn.Module):
    """Attention based fusion: a stage's map with what comes from the stages behind it."""

    def __init__(self, channels: int, middle: int, out: int, *, fuses: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(_conv(channels, middle, 1), nn.BatchNorm2d(middle))
        self.expand = nn.Sequential(_conv(middle, out, 3), nn.BatchNorm2d(out))
        self.attend = nn.Sequential(nn.Conv2d(2 * middle, 2, 1), nn.Sigmoid()) if fuses else None

    def forward(
        self, x_BCHW: Tensor, behind_BCHW: Tensor | None, side: int, out_side: int
    ) -> tuple[Tensor, Tensor]:
        """The map to compare, and the one for the stage in front. `behind` is resized to `side`, both results to
        `out_side`, by the nearest neighbour."""
        x_BCHW = self.reduce(x_BCHW)
        if self.attend is not None and behind_BCHW is not None:
            behind_BCHW = interpolate(behind_BCHW, (side, side), mode="nearest")
            weights_B2HW = self.attend(torch.cat([x_BCHW, behind_BCHW], dim=1))
            x_BCHW = x_BCHW * weights_B2HW[:, :1] + behind_BCHW * weights_B2HW[:, 1:]
        if x_BCHW.shape[-1] != out_side:
            x_BCHW = interpolate(x_BCHW, (out_side, out_side), mode="nearest")
        return self.expand(x_BCHW), x_BCHW


def hierarchical_context(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """The squared distance of maps, whole and averaged to 4x4, 2x2 and 1x1, summed over the stages, >= 0.

        per stage: (MSE(whole) + sum over l of 2^-l MSE(averaged)) / (1 + sum over l of 2^-l)

    Only sizes below the map's own count, l numbers those that do from 1.

    Source: Chen et al., arXiv:2104.09044, section 3.4, and the authors' code.
    """
    total = student[0].new_zeros(())
    for s_BCHW, t_BCHW in zip(student, teacher, strict=True):
        loss, weight, weights = mse_loss(s_BCHW, t_BCHW), 1.0, 1.0
        for side in _LEVELS:
            if side < s_BCHW.shape[2]:
                weight /= 2
                weights += weight
                loss = loss + weight * mse_loss(
                    adaptive_avg_pool2d(s_BCHW, side), adaptive_avg_pool2d(t_BCHW, side)
                )
        total = total + loss / weights
    return total


def _conv(channels: int, out: int, width: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels, out, width, padding=width // 2, bias=False)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    return conv
