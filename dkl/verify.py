"""The verifier: whether an image that an attack claims to have broken is broken. No code of any attack in here.

Legend: B batch, K classes, C channels, H, W pixels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dkl.documents import Norm, ThreatModel

ROUNDING = 5e-7
"""How far each pixel may be off: 1/8000 of a grey level, eight steps of float32 just below 1.

Attacks add, project and clip in float32. Per pixel, pyautoattack was seen beyond the limits on 3 x 32 x 32 images
by 3e-8 in Linf (APGD, Square), by 2e-7 on average in L1 (APGD), by 2.4e-7 above 1 (Square in L1).
"""


class Verdict(NamedTuple):
    """What holds of each claimed image; bool tensors of shape (B,)."""

    allowed: Tensor
    """Finite, in [0, 1] and inside the ball."""
    finite: Tensor
    """The model's logits are finite numbers. The argmax of a NaN is an accident, not a misclassification."""
    fooled: Tensor
    """The label is not predicted."""
    predicted: Tensor
    """int64: see `predict`."""

    @property
    def admissible(self) -> Tensor:
        """An image that may be claimed at all."""
        return self.allowed & self.finite

    @property
    def broken(self) -> Tensor:
        return self.admissible & self.fooled


def verify(model: nn.Module, x_BCHW: Tensor, x_adv_BCHW: Tensor, y_B: Tensor, threat: ThreatModel) -> Verdict:
    """Judge `x_adv_BCHW` as adversarial images of `x_BCHW`: the model in float32, distances in float64.

        broken  =  x_adv in [0, 1]^n  and  ||x_adv - x||_p <= eps  and  argmax model(x_adv) != y,     n = C*H*W

    with ROUNDING per pixel allowed: beyond [0, 1], and n^(1/p) times as much beyond eps.
    """
    x_adv_BCHW = x_adv_BCHW.float()
    predicted_B = predict(model, x_adv_BCHW)
    return Verdict(allowed(x_BCHW, x_adv_BCHW, threat), predicted_B >= 0, predicted_B != y_B, predicted_B)


def classify(model: nn.Module, x_BCHW: Tensor, y_B: Tensor) -> tuple[Tensor, Tensor]:
    """Whether the label is predicted, and whether all logits are finite; two bool tensors of shape (B,)."""
    predicted_B = predict(model, x_BCHW)
    return predicted_B == y_B, predicted_B >= 0


@torch.no_grad()
def predict(model: nn.Module, x_BCHW: Tensor) -> Tensor:
    """The class with the largest logit, int64 (B,); -1 where not all logits are finite numbers."""
    with torch.autocast(x_BCHW.device.type, enabled=False), ieee_float32():
        logits_BK: Tensor = model(x_BCHW)
    return logits_BK.argmax(dim=1).where(logits_BK.isfinite().all(dim=1), -1)


@contextmanager
def ieee_float32() -> Iterator[None]:
    """Inside, convolutions and products keep all of float32, where a GPU by default rounds them to TF32."""
    cudnn, products = torch.backends.cudnn, torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with cudnn.flags(
            enabled=cudnn.enabled,
            benchmark=cudnn.benchmark,
            deterministic=cudnn.deterministic,
            allow_tf32=False,
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(products)


@torch.no_grad()
def allowed(x_BCHW: Tensor, x_adv_BCHW: Tensor, threat: ThreatModel) -> Tensor:
    """Whether each x_adv is finite, in [0, 1] and within eps of x; bool (B,). Comparisons with NaN are false."""
    if x_adv_BCHW.shape != x_BCHW.shape:
        raise ValueError(
            f"adversarial images must have the shape of the clean ones, {tuple(x_BCHW.shape)}, "
            f"found {tuple(x_adv_BCHW.shape)}"
        )
    x, x_adv, p = x_BCHW.flatten(1).double(), x_adv_BCHW.flatten(1).double(), _ORDER[threat.norm]
    in_range_B: Tensor = ((x_adv >= -ROUNDING) & (x_adv <= 1 + ROUNDING)).all(dim=1)
    distance_B: Tensor = torch.linalg.vector_norm(x_adv - x, p, dim=1)
    radius: float = threat.eps + ROUNDING * x.shape[1] ** (1 / p)
    return in_range_B & (distance_B <= radius)


_ORDER: dict[Norm, float] = {"Linf": float("inf"), "L2": 2, "L1": 1}
