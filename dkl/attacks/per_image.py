"""Projected gradient ascent with a radius, a number of steps and a step size of each image's own, for Linf balls.

Shapes: B batch, C channels, H, W pixels, K classes, n images that still go on.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from dkl.attacks.pgd import Forward, input_gradient


class Strategies(NamedTuple):
    """How each image of a batch is attacked."""

    eps_B: Tensor
    """In pixels of [0, 1], like the images."""
    steps_B: Tensor
    """Integers from 1."""
    step_size_B: Tensor
    """In pixels."""

    def of(self, rows: slice) -> "Strategies":
        return Strategies(*(values_B[rows] for values_B in self))


LossOfRows = Callable[[Tensor, Tensor], Tensor]
"""The images' positions in the batch, rows_n, and their logits_nK -> scalar: a sum over the images."""


def pgd_linf_per_image(
    forward: Forward, x_BCHW: Tensor, loss: LossOfRows, strategies: Strategies, *, start: Tensor
) -> Tensor:
    """x_adv with |x_adv - x| <= eps_B in every pixel of each image, in [0, 1]: `pgd_linf`, image by image.

    An image leaves the batch after its last step, so `forward` must not let images depend on each other. The
    longest go first, so that those that go on are always the first rows of one tensor. Where all strategies are
    equal the result is that of `pgd_linf`, bit for bit.
    """
    steps_B = strategies.steps_B.cpu()  # waits for a GPU once, and not at every step
    longest_first_B = steps_B.argsort(descending=True, stable=True)
    order_B = longest_first_B.to(x_BCHW.device)
    eps_B111 = strategies.eps_B[order_B, None, None, None]
    step_size_B111 = strategies.step_size_B[order_B, None, None, None]
    sorted_BCHW = torch.empty_like(x_BCHW).copy_(x_BCHW[order_B])  # keeps the layout in memory
    low_BCHW, high_BCHW = sorted_BCHW - eps_B111, sorted_BCHW + eps_B111
    x_adv_BCHW = sorted_BCHW + start[order_B]
    for step in range(int(steps_B.max())):
        n = int((steps_B > step).sum())
        rows_n = order_B[:n]
        x_nCHW = x_adv_BCHW[:n]
        g_nCHW = input_gradient(forward, x_nCHW, partial(loss, rows_n))
        moved_nCHW = x_nCHW + step_size_B111[:n] * g_nCHW.sign()
        x_adv_BCHW[:n] = moved_nCHW.clamp(low_BCHW[:n], high_BCHW[:n]).clamp(0, 1)
    result_BCHW = torch.empty_like(x_adv_BCHW)
    result_BCHW[order_B] = x_adv_BCHW
    return result_BCHW
