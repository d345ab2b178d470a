"""What training may minimise, and the adversary it trains against. No torch here.

Every objective is a natural term, a mean over all images, plus a robust term. x is the clean image, x_adv the
adversarial one; CE is the mean cross-entropy with the label y, KL the mean divergence of the predictions.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dkl.architectures import Model, ResNet
from dkl.documents import (
    Count,
    Decay,
    Document,
    Fraction,
    NonNegative,
    PluginArguments,
    PluginName,
    Positive,
)
from dkl.strategy import Strategy, require_ascending


class Natural(Document):
    """CE(x): no defence."""

    kind: Literal["natural"] = "natural"
    label_smoothing: Decay = 0.0
    """The share of the label's probability that all classes get alike."""


class PGDAT(Document):
    """CE(x_adv): Madry et al., arXiv:1706.06083."""

    kind: Literal["pgd-at"] = "pgd-at"


class TRADES(Document):
    """CE(x) + beta * KL(x || x_adv): Zhang et al., arXiv:1901.08573.

    With label smoothing the objective of DM-AT (arXiv:2302.04638), with a linear radius and two steps that of ACAT
    (arXiv:2210.15318).
    """

    kind: Literal["trades"] = "trades"
    beta: NonNegative = 6.0
    label_smoothing: Decay = 0.0
    """The share of the label's probability that all classes get alike, in CE(x)."""


class MART(Document):
    """BCE(x_adv) + beta * mean of KL(x || x_adv) * (1 - p_y(x)): Wang et al., ICLR 2020.

    BCE adds to the cross-entropy the margin term -log(1 - the largest wrong probability).
    """

    kind: Literal["mart"] = "mart"
    beta: NonNegative = 6.0


class IKL(Document):
    """CE(x) + wmse_weight * wMSE + ce_weight * soft cross-entropy: IKL-AT, arXiv:2305.13948, Eq. 10.

    The paper calls wmse_weight alpha and ce_weight beta; the authors' code has them the other way round.
    """

    kind: Literal["ikl"] = "ikl"
    wmse_weight: NonNegative = 20.0
    """Factor in front of the 1/4 form of the weighted MSE."""
    ce_weight: NonNegative = 4.0
    """Factor in front of the soft-label cross-entropy."""
    prior_temperature: Positive = 4.0
    """Softens the predictions that are averaged into the class prior (the paper's tau)."""


class GKL(Document):
    """IKL-AT with a smoother weight: the class prior to the power gamma, normalised over the batch.

    Names of the weights as in IKL. Source: arXiv:2503.08038 and its code.
    """

    kind: Literal["gkl"] = "gkl"
    wmse_weight: NonNegative = 20.0
    ce_weight: NonNegative = 4.0
    prior_temperature: Positive = 4.0
    gamma: Fraction = 1.0
    """1 leaves the prior as it is, which is IKL; 0 weighs all classes alike."""


class LBGAT(Document):
    """MSE(x_adv, teacher(x)) + CE(teacher(x)) + beta * KL(x || x_adv): Cui et al., ICCV 2021, arXiv:2011.11164.

    The teacher is a second network that learns along from scratch, on clean images alone, by the same optimiser.
    The mean squared error of logits, over images and classes, moves both networks. The teacher is not published.
    """

    kind: Literal["lbgat"] = "lbgat"
    beta: NonNegative = 0.0
    teacher: Model = ResNet(strided_stages=2)
    """Its default is the ResNet18_cifar of the authors' code, dvlab-research/LBGAT, models/resnetcifar.py."""


class DAJAT(Document):
    """Mean over views of [CE(x) + beta * KL(x || x_adv)] + consistency * JS: Addepalli et al., arXiv:2210.15318.

    The base view is x as ever; further views go through AutoAugment first, and have batch norms of their own that
    are not published. JS is the Jensen-Shannon divergence of the predictions for the clean views.
    """

    kind: Literal["dajat"] = "dajat"
    views: Annotated[int, Field(ge=1, le=8, strict=True)] = 2
    """AutoAugment views beside the base view."""
    beta: NonNegative = 10.0
    consistency: NonNegative = 3.0
    label_smoothing: Decay = 0.0
    """The share of the label's probability that all classes get alike, in CE(x)."""


class LASAT(Document):
    """CE(x_adv), each x_adv by a strategy of its own that a second network chooses: LAS-AT, arXiv:2203.06616.

    With AWP it is LAS-AWP. `steps` and `relative_step_size` of `attack` are those of the PGD in the reward.
    """

    kind: Literal["las-at"] = "las-at"
    label_smoothing: Decay = 0.0
    """The share of the label's probability that all classes get alike, in CE(x_adv)."""
    strategy: Strategy = Strategy()


class LASTRADES(Document):
    """CE(x) + beta * KL(x || x_adv), beta and x_adv by a strategy of each image: LAS-TRADES, arXiv:2203.06616.

    `steps` and `relative_step_size` of `attack` are those of the PGD in the reward.
    """

    kind: Literal["las-trades"] = "las-trades"
    betas: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=100)] = (5.0, 6.0, 7.0, 8.0, 9.0)
    """What the strategy chooses beta from, ascending."""
    strategy: Strategy = Strategy()

    @model_validator(mode="after")
    def _betas_are_ascending(self) -> Self:
        require_ascending("objective.betas", self.betas)
        return self


class PluginObjective(Document):
    """An objective of a package that the operator has installed on the workers, see docs/plugins.md."""

    kind: Literal["plugin"] = "plugin"
    name: PluginName
    """As the package's entry point under dklbench.objectives has it."""
    arguments: PluginArguments = Field(default={})
    """What the plugin is told, by name; it says itself what it takes."""


OfOneNetwork = Natural | PGDAT | TRADES | MART | IKL | GKL | LASAT | LASTRADES | PluginObjective
"""Objectives of a network and its images alone, which one update serves."""

Objective = Annotated[OfOneNetwork | LBGAT | DAJAT, Field(discriminator="kind")]


class PGD(Document):
    """The inner maximisation: projected gradient ascent around x, in the ball of the threat model."""

    loss: Literal["ce", "kl", "ikl", "objective"] = "ikl"
    """What is maximised: the cross-entropy with the label, the divergence from the clean prediction, or IKL with
    unit weights (the authors' CIFAR-100 script); objective: what the objective says, which is a plugin's."""
    steps: Count = 5
    relative_step_size: Positive = 0.5
    """Step size in units of the epoch's eps."""
    start: Literal["gaussian", "uniform"] = "gaussian"
    """gaussian: x plus normal noise of 0.001. uniform: anywhere in the ball (Linf), or at a uniform distance in a
    random direction (L2)."""
    mode: Literal["eval", "batch", "train"] = "eval"
    """What batch norms do meanwhile. eval: use their running statistics. batch: use the batch's, and leave the
    running ones alone. train: use the batch's and update the running ones at every step."""
    eps_schedule: Literal["constant", "linear"] = "linear"
    """The radius of epoch e of E: eps, or eps * e / E."""


class AWP(Document):
    """Adversarial weight perturbation (Wu et al., arXiv:2004.05884)."""

    gamma: Positive = 0.005
    """Size of the perturbation relative to each weight tensor's norm."""
    first_epoch: Count = 10
    """Epochs before this one train without it."""
