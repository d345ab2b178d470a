"""The attacks of training. `perturb` is the one door; each attack is a pure function in a file of its own."""

from collections.abc import Callable
from typing import assert_never

from torch import Tensor, nn

from dkl.attacks.pgd import pgd_l2, pgd_linf
from dkl.documents import ThreatModel
from dkl.models import eval_mode
from dkl.recipes import PGD


def perturb(
    attack: PGD,
    model: nn.Module,
    x: Tensor,
    threat: ThreatModel,
    *,
    loss: Callable[[Tensor], Tensor],
    noise: Tensor,
) -> Tensor:
    """Images x_adv in the ball of `threat` around `x` and in [0, 1] that make `loss(logits_adv)` large.

    The model is attacked in eval mode (running batch-norm statistics) and is then in the mode it was in; its
    parameters get no gradients. `noise`, standard normal and of the shape of `x`, decides the start
    x + 0.001 * noise: where randomness comes from is the caller's to say.
    """
    step_size = attack.relative_step_size * threat.eps
    start = 0.001 * noise
    with eval_mode(model):
        match threat.norm:
            case "Linf":
                return pgd_linf(
                    model, x, loss, eps=threat.eps, step_size=step_size, steps=attack.steps, start=start
                )
            case "L2":
                return pgd_l2(model, x, loss, eps=threat.eps, step_size=step_size, steps=attack.steps, start=start)
            case "L1":
                raise ValueError("training against L1 is not available; use Linf or L2")
            case _:
                assert_never(threat.norm)
