"""Learnt attack strategies: what they choose from, how they are learnt and what they are rewarded for. No torch.

Source: LAS-AT, Jia et al., CVPR 2022, arXiv:2203.06616.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dkl.architectures import Model, ResNet
from dkl.documents import Count, Document, NonNegative, Pixels, Positive, ThreatModel

Choices = Annotated[tuple[Pixels, ...], Field(min_length=1, max_length=100)]


class Reward(Document):
    """What the strategy of an image earns: loss + robust * R + clean * C.

    loss is the cross-entropy of its adversarial image. R is 1 where the model, one plain gradient step later,
    withstands PGD on the image, C where it classifies it correctly, else they are 0. The PGD climbs the
    cross-entropy in the ball of `threat` from uniform starts, with `steps` and `relative_step_size` of `attack`.
    """

    robust: NonNegative = 4.0
    clean: NonNegative = 2.0
    largest_loss: Positive = 5.0
    """Losses above it count as this much."""
    restarts: Count = 2
    """Of that PGD; the model has to withstand all of them."""
    normalisation: Literal["none", "batch"] = "none"
    """batch: less the batch's mean, over its standard deviation, which learns in far fewer updates."""


class Strategy(Document):
    """How every image is attacked, as a second network chooses from these lists. It learns by REINFORCE."""

    network: Model = ResNet()
    """x -> one distribution per list. It is not part of the trained model."""
    eps: Choices = tuple(levels / 255 for levels in range(3, 16))
    """Radii, ascending."""
    steps: Annotated[tuple[Count, ...], Field(min_length=1, max_length=100)] = tuple(range(3, 15))
    """Numbers of steps, ascending."""
    step_sizes: Choices = tuple(levels / 255 for levels in range(1, 6))
    """Ascending."""
    clip_to_threat: bool = False
    """Whether adversarial images are cut back to the threat's radius in the end."""
    every: Count = 20
    """The strategy learns in one of so many updates of the model."""
    lr: Positive = 1e-4
    """Of Adam."""
    gradient_norm: Positive = 1.0
    """Longer gradients are shortened to it."""
    reward: Reward = Reward()

    @model_validator(mode="after")
    def _lists_are_ascending(self) -> Self:
        require_ascending("strategy.eps", self.eps)
        require_ascending("strategy.steps", self.steps)
        require_ascending("strategy.step_sizes", self.step_sizes)
        if self.eps[-1] >= 1:
            raise ValueError(
                f"strategy.eps of {self.eps[-1]:g} reaches from black to white; pixels are in [0, 1], "
                f"did you mean '{self.eps[-1]:g}/255'?"
            )
        return self


def require_ascending(name: str, values: Sequence[float]) -> None:
    """ValueError where `values` do not grow from each to the next."""
    if any(left >= right for left, right in pairwise(values)):
        raise ValueError(f"{name} has to list different values, the smallest first")


def require_attackable(
    kind: str,
    *,
    threat: ThreatModel | None,
    mode: str | None,
    eps_schedule: str | None,
    second_view: bool,
    compiled: str,
) -> None:
    """ValueError where the rest of a recipe, with the objective `kind`, leaves a learnt strategy no way."""
    if threat is None or threat.norm != "Linf":
        raise ValueError(f"the objective '{kind}' chooses strategies for Linf; set threat.norm='Linf'")
    if mode != "eval":
        raise ValueError(
            f"the objective '{kind}' attacks every image for as long as its strategy says, which batch norms must "
            "not notice; set attack.mode='eval'"
        )
    if eps_schedule != "constant":
        raise ValueError(
            f"the objective '{kind}' lets the strategy choose the radius; set attack.eps_schedule='constant'"
        )
    if second_view:
        raise ValueError(f"the objective '{kind}' takes no second_view; leave it out, or pick 'trades'")
    if compiled == "cuda-graphs":
        raise ValueError(
            f"the objective '{kind}' attacks batches of ever other sizes, which CUDA graphs cannot; "
            "set compile='default' or 'off'"
        )
