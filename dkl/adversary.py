"""The inner maximisation: from where and how far, and the whole of it for methods of more than one network.

Shapes: B batch, C channels, H, W pixels.
"""

import torch
from torch import Tensor, nn

from dkl import attacks
from dkl.attacks.pgd import Forward
from dkl.documents import ThreatModel
from dkl.draws import Draw, generator
from dkl.method import Shown
from dkl.recipes import Distill, Train
from dkl.schedules import radius
from dkl.terms import attacked_loss


def adversary_of(recipe: Train | Distill, device: str) -> "Adversary | None":
    """Whom the recipe trains against; None where it defends against nobody, or without an attack."""
    return None if recipe.attack is None or recipe.threat is None else Adversary(recipe, device)


class Adversary:
    """What a recipe defends against, and with which attack it trains; it has both."""

    def __init__(self, recipe: Train | Distill, device: str) -> None:
        assert recipe.attack is not None
        assert recipe.threat is not None
        self.attack = recipe.attack
        self._threat = recipe.threat
        self._epochs = recipe.epochs
        self._seed = recipe.seed
        self._device = device

    def threat(self, epoch: int) -> ThreatModel:
        """What this epoch trains against."""
        return radius(self.attack, self._threat, epoch, self._epochs)

    def start(self, shown: Shown) -> Tensor:
        """Where the attack begins, as a difference to the images; the same in every process."""
        random = generator(self._device, Draw.ATTACK_START, self._seed, shown.epoch, shown.number)
        return attacks.draw_start(self.attack, shown.x_BCHW, self.threat(shown.epoch), random)

    def attacked(
        self, model: nn.Module, forward: Forward, x_BCHW: Tensor, y_B: Tensor, start_BCHW: Tensor, epoch: int
    ) -> Tensor:
        """x_adv that maximises the attack's loss under `forward`, which calls `model`."""
        with attacks.attack_mode(model, self.attack.mode):
            nat_BK = None
            if self.attack.loss != "ce":
                with torch.no_grad():
                    nat_BK = forward(x_BCHW)
            return attacks.perturb(
                self.attack,
                forward,
                x_BCHW,
                self.threat(epoch),
                loss=lambda adv_BK: attacked_loss(self.attack, nat_BK, adv_BK, y_B, None),
                start_BCHW=start_BCHW,
            ).detach()
