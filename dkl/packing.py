"""What is kept of a batch, on the CPU: per image what was found, adversarial images in 8 bits where that will do.

Legend: B batch, C channels, H, W pixels.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dkl.attacks.outcome import Outcome
from dkl.batches import as_pixels
from dkl.documents import ThreatModel
from dkl.tally import Finding, Rows
from dkl.verify import allowed, verify


def of_clean_pass(rows: Rows, predicted_B: Tensor, y_B: Tensor, shape: tuple[int, ...]) -> Finding:
    """Which images are wrong before any attack; `shape` is an image's (C, H, W). See `dkl.verify.predict`."""
    nothing = np.full(len(rows), -1)
    return Finding(
        rows=rows,
        broken=(predicted_B != y_B).cpu().numpy(),
        restart=nothing.astype(np.int16),
        target=nothing.astype(np.int16),
        step=nothing.astype(np.int32),
        margin=np.full(len(rows), np.inf, np.float32),
        flat=np.zeros(len(rows), np.bool_),
        in_8_bits=np.zeros(len(rows), np.bool_),
        x8=np.zeros((0, *shape), np.uint8),
        x32=np.zeros((0, *shape), np.float32),
        predicted=predicted_B.cpu().numpy().astype(np.int32),
    )


def of_attack(
    rows: Rows,
    outcome: Outcome,
    model: nn.Module,
    x_BCHW: Tensor,
    y_B: Tensor,
    threat: ThreatModel,
    *,
    at_once: int,
) -> Finding:
    """What an attack on `x_BCHW`, which are 255ths, has achieved; so many images pass the model `at_once`."""
    broken_B, in_8_bits_B = outcome.broken, torch.zeros_like(outcome.broken)
    x8_BCHW, predicted_B = torch.zeros_like(x_BCHW, dtype=torch.uint8), outcome.predicted.clone()
    for some in broken_B.nonzero().squeeze(1).split(at_once) if broken_B.any() else ():
        packed = pack(model, x_BCHW[some], outcome.x_adv[some], y_B[some], threat)
        in_8_bits_B[some], x8_BCHW[some] = packed.storable, packed.rounded
        predicted_B[some] = packed.predicted.where(packed.storable, predicted_B[some])
    return Finding(
        rows=rows,
        broken=broken_B.cpu().numpy(),
        restart=outcome.restart.cpu().numpy().astype(np.int16),
        target=outcome.target.cpu().numpy().astype(np.int16),
        step=outcome.step.cpu().numpy().astype(np.int32),
        margin=outcome.margin.float().cpu().numpy(),
        flat=outcome.flat.cpu().numpy(),
        in_8_bits=in_8_bits_B.cpu().numpy(),
        x8=x8_BCHW[in_8_bits_B].cpu().numpy(),
        x32=outcome.x_adv[broken_B & ~in_8_bits_B].float().contiguous().cpu().numpy(),
        predicted=predicted_B.cpu().numpy().astype(np.int32),
    )


class Packed(NamedTuple):
    """Adversarial images in 255ths."""

    storable: Tensor
    """bool (B,): whether the rounded image, too, lies in the ball and is misclassified in float32."""
    rounded: Tensor
    """uint8 (B, C, H, W)"""
    predicted: Tensor
    """int64 (B,): the classes of the rounded images, see `dkl.verify.predict`."""


def pack(model: nn.Module, x_BCHW: Tensor, x_adv_BCHW: Tensor, y_B: Tensor, threat: ThreatModel) -> Packed:
    """The adversarial images in 255ths, and which of them may be stored so. `x_BCHW` are 255ths already."""
    rounded_BCHW = _round(x_BCHW, x_adv_BCHW, threat)
    verdict = verify(model, x_BCHW, as_pixels(rounded_BCHW), y_B, threat)
    return Packed(verdict.broken, rounded_BCHW, verdict.predicted)


@torch.no_grad()
def _round(x_BCHW: Tensor, x_adv_BCHW: Tensor, threat: ThreatModel) -> Tensor:
    """x_adv in 255ths, uint8, nearest or a little nearer to x: as near as the ball demands.

    Rounding to the nearest leaves the balls of L2 and L1 nearly always. So a pixel's distance from x, in 255ths,
    is rounded up only where its fraction is at least a share, one per image: the smallest in 1/2..1, by bisection,
    with which the image stays in the ball. With share 1 every pixel moves towards x, and it does.
    """
    x = x_BCHW.double().mul(255).round()
    delta = x_adv_BCHW.double().mul(255) - x

    def with_share(share: Tensor) -> Tensor:
        return (x + delta.sign() * (delta.abs() + 1 - share).floor()).clamp(0, 255).to(torch.uint8)

    def fits(share: Tensor) -> Tensor:
        return allowed(x_BCHW, as_pixels(with_share(share)), threat)[:, None, None, None]

    low = torch.full_like(x[:, :1, :1, :1], 0.5)
    high = torch.where(fits(low), 0.5, torch.ones_like(low))
    for _ in range(8):
        middle = (low + high) / 2
        fitting = fits(middle)
        low, high = torch.where(fitting, low, middle), torch.where(fitting, middle, high)
    return with_share(high)
