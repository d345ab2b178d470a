"""What is kept of a batch, on the CPU: per image what was found, adversarial images in 8 bits where that will do.

Legend: B batch, C channels, H, W pixels.
"""

import numpy as np
import torch
from torch import Tensor, nn

from dkl.attacks.outcome import Outcome
from dkl.batches import as_pixels
from dkl.documents import ThreatModel
from dkl.tally import Finding, Rows
from dkl.verify import allowed, verify


def of_clean_pass(rows: Rows, wrong_B: Tensor, shape: tuple[int, ...]) -> Finding:
    """Which images are wrong before any attack; `shape` is an image's (C, H, W)."""
    nothing = np.full(len(rows), -1)
    return Finding(
        rows=rows,
        broken=wrong_B.cpu().numpy(),
        restart=nothing.astype(np.int16),
        target=nothing.astype(np.int16),
        step=nothing.astype(np.int32),
        margin=np.full(len(rows), np.inf, np.float32),
        flat=np.zeros(len(rows), np.bool_),
        in_8_bits=np.zeros(len(rows), np.bool_),
        x8=np.zeros((0, *shape), np.uint8),
        x32=np.zeros((0, *shape), np.float32),
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
    x8_BCHW = torch.zeros_like(x_BCHW, dtype=torch.uint8)
    for some in broken_B.nonzero().squeeze(1).split(at_once) if broken_B.any() else ():
        in_8_bits_B[some], x8_BCHW[some] = pack(model, x_BCHW[some], outcome.x_adv[some], y_B[some], threat)
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
    )


def pack(
    model: nn.Module, x_BCHW: Tensor, x_adv_BCHW: Tensor, y_B: Tensor, threat: ThreatModel
) -> tuple[Tensor, Tensor]:
    """Which adversarial images may be stored in 255ths, bool (B,), and all of them so rounded, uint8 (B, C, H, W).

    May be: the rounded image, too, lies in the ball and is misclassified in float32. `x_BCHW` are 255ths already.
    """
    rounded_BCHW = _round(x_BCHW, x_adv_BCHW, threat)
    return verify(model, x_BCHW, as_pixels(rounded_BCHW), y_B, threat).broken, rounded_BCHW


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
