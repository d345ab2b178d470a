"""Adversarial training with a margin: a wrong class may come no closer to the label's than `margin`."""

from pydantic import BaseModel, NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn.functional import cross_entropy, multi_margin_loss


class MarginAT(BaseModel):
    """CE(x_adv) + weight * mean of max(0, margin - (the label's logit - another's)) over images and classes."""

    weight: NonNegativeFloat = 1.0
    margin: PositiveFloat = 2.0

    def loss(self, logits_nat: Tensor, logits_adv: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {
            "adversarial": cross_entropy(logits_adv, y),
            "margin": self.weight * multi_margin_loss(logits_adv, y, margin=self.margin),
        }

    def attacked(self, logits_nat: Tensor, logits_adv: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(logits_adv, y)
