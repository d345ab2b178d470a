"""The attacks of training. `perturb` is the one door; each attack is a pure function in a file of its own."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, assert_never

import torch
from torch import Tensor, nn

from dkl.attacks.per_image import LossOfRows, Strategies, pgd_linf_per_image
from dkl.attacks.pgd import Forward, Loss, pgd_l2, pgd_linf
from dkl.documents import ThreatModel
from dkl.models import batch_mode, eval_mode
from dkl.objectives import PGD


def perturb(
    attack: PGD, forward: Forward, x_BCHW: Tensor, threat: ThreatModel, *, loss: Loss, start_BCHW: Tensor
) -> Tensor:
    """Images x_adv in the ball of `threat` around `x` and in [0, 1] that make `loss(logits_adv)` large.

    `forward` is the network in the mode that `attack_mode` puts it in. `start_BCHW` is where the ascent begins, as
    a difference to x: where randomness comes from is the caller's to say, see `draw_start`. A uniform start is
    clipped to pixels, the tiny gaussian one is not, as in the originals.
    """
    step_size = attack.relative_step_size * threat.eps
    start_BCHW = _clipped(attack, x_BCHW, start_BCHW)
    match threat.norm:
        case "Linf":
            ascend = pgd_linf
        case "L2":
            ascend = pgd_l2
        case "L1":
            raise ValueError("training against L1 is not available; use Linf or L2")
        case _:
            assert_never(threat.norm)
    return ascend(forward, x_BCHW, loss, eps=threat.eps, step_size=step_size, steps=attack.steps, start=start_BCHW)


def perturb_per_image(
    attack: PGD, forward: Forward, x_BCHW: Tensor, strategies: Strategies, *, loss: LossOfRows, start_BCHW: Tensor
) -> Tensor:
    """`perturb` for Linf, with radius, steps and step size of each image's own instead of the attack's."""
    return pgd_linf_per_image(forward, x_BCHW, loss, strategies, start=_clipped(attack, x_BCHW, start_BCHW))


def _clipped(attack: PGD, x_BCHW: Tensor, start_BCHW: Tensor) -> Tensor:
    return (x_BCHW + start_BCHW).clamp(0, 1) - x_BCHW if attack.start == "uniform" else start_BCHW


def draw_start(attack: PGD, x_BCHW: Tensor, threat: ThreatModel, random: torch.Generator) -> Tensor:
    """A random difference to `x_BCHW` to begin with, as `attack.start` says, from `random` alone."""

    def drawn(shape: tuple[int, ...], kind: Literal["normal", "uniform"]) -> Tensor:
        draw = torch.randn if kind == "normal" else torch.rand
        return draw(shape, generator=random, device=random.device).to(x_BCHW.device)

    shape = tuple(x_BCHW.shape)
    if attack.start == "gaussian":
        return 0.001 * drawn(shape, "normal")
    if threat.norm == "Linf":
        return threat.eps * (2 * drawn(shape, "uniform") - 1)
    direction_BCHW = drawn(shape, "normal")
    length_B111 = threat.eps * drawn((shape[0], 1, 1, 1), "uniform")
    return direction_BCHW * (length_B111 / direction_BCHW.flatten(1).norm(dim=1)[:, None, None, None])


@contextmanager
def attack_mode(model: nn.Module, mode: Literal["eval", "batch", "train"]) -> Iterator[None]:
    """Inside, batch norms do what the inner maximisation asks for, and no parameter wants a gradient.

    Without that a compiled network would compute the weights' gradients in every step of the attack.
    """
    wanting = [parameter for parameter in model.parameters() if parameter.requires_grad]
    norms: AbstractContextManager[None]
    match mode:
        case "eval":
            norms = eval_mode(model)
        case "batch":
            norms = batch_mode(model)
        case "train":
            norms = nullcontext()
        case _:
            assert_never(mode)
    try:
        for parameter in wanting:
            parameter.requires_grad_(False)
        with norms:
            yield
    finally:
        for parameter in wanting:
            parameter.requires_grad_()
