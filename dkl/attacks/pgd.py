"""Projected gradient ascent on a loss of the logits, for Linf and L2 balls. Pixels are in [0, 1].

The functions return x_adv within `eps` of `x` (to rounding) and within [0, 1]. `loss` maps the logits of x_adv to
a scalar, the larger the more adversarial. `start` is added to x at first, and is not projected before the first
step. Parameters of the network get no gradients; its mode is the caller's affair. `steps` is at least 1.

Shapes: B batch, C channels, H, W pixels, K classes.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Forward = Callable[[Tensor], Tensor]
"""x_BCHW -> logits_BK"""
Loss = Callable[[Tensor], Tensor]
"""logits_BK -> scalar"""


def pgd_linf(
    forward: Forward, x_BCHW: Tensor, loss: Loss, *, eps: float, step_size: float, steps: int, start: Tensor
) -> Tensor:
    """x_adv with |x_adv - x| <= eps in every pixel: steps along the sign of the gradient.

        x_adv <- clip_[0, 1](clip_[x - eps, x + eps](x_adv + step_size * sign(g))),      g = d loss / d x_adv

    Source: Madry et al., arXiv:1706.06083.
    """
    x_adv_BCHW = x_BCHW + start
    for _ in range(steps):
        g_BCHW = input_gradient(forward, x_adv_BCHW, loss)
        x_adv_BCHW = x_adv_BCHW + step_size * g_BCHW.sign()
        x_adv_BCHW = x_adv_BCHW.clamp(x_BCHW - eps, x_BCHW + eps).clamp(0, 1)
    return x_adv_BCHW


def pgd_l2(
    forward: Forward, x_BCHW: Tensor, loss: Loss, *, eps: float, step_size: float, steps: int, start: Tensor
) -> Tensor:
    """x_adv with ||x_adv - x||_2 <= eps per image: steps along the normalised gradient.

        delta <- shrink_eps(clip_[0, 1](x + delta + step_size * g / ||g||) - x)

    An image whose gradient is exactly zero stays where it is.

    Source: Madry et al., arXiv:1706.06083; TRADES, arXiv:1901.08573, for the L2 form.
    """
    delta_BCHW = start
    for _ in range(steps):
        g_BCHW = input_gradient(forward, x_BCHW + delta_BCHW, loss)
        norm_B111 = g_BCHW.flatten(1).norm(dim=1)[:, None, None, None]
        direction_BCHW = g_BCHW / norm_B111.masked_fill(norm_B111 == 0, 1)
        moved_BCHW = (x_BCHW + delta_BCHW + step_size * direction_BCHW).clamp(0, 1)
        delta_BCHW = (moved_BCHW - x_BCHW).renorm(p=2, dim=0, maxnorm=eps)
    return x_BCHW + delta_BCHW


def input_gradient(forward: Forward, x_BCHW: Tensor, loss: Loss) -> Tensor:
    """d loss / d x, as many numbers as x has."""
    x_BCHW = x_BCHW.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(loss(forward(x_BCHW)), x_BCHW)[0]
