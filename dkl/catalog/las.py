"""LAS-AT, LAS-TRADES and LAS-AWP: attack strategies that are learnt (arXiv:2203.06616). No torch.

"LAS-AT" in the tables of the IKL-AT paper is LAS-AWP. The authors' code carries no licence: the recipes are made
of formulas and settings, and what was chosen here instead is said in the descriptions. The lists that strategies
choose from are those of the commands in the README of jiaxiaojunQAQ/LAS-AT, commit ee756b7.
"""

from typing import Literal

from dkl.architectures import CNN, Model, WideResNet
from dkl.catalog.digits import on_digits
from dkl.catalog.entries import (
    DKL_README,
    DKL_TABLE_2,
    DKL_TABLE_3,
    LINF_8,
    ROBUSTBENCH,
    WRN_34_10,
    Named,
    Published,
)
from dkl.catalog.rivals import HELD_OUT
from dkl.objectives import AWP, LASAT, LASTRADES, PGD
from dkl.recipes import SGD, Steps, Train
from dkl.strategy import Reward, Strategy

_Cifar = Literal["cifar10", "cifar100"]

_UNIFORM = PGD(loss="ce", steps=10, relative_step_size=0.25, start="uniform", eps_schedule="constant")
_NEARBY = PGD(loss="kl", steps=10, relative_step_size=0.25, start="gaussian", eps_schedule="constant")
"""Ten steps of 2/255 are those of the PGD in the reward."""

_SMOOTHING: dict[_Cifar, float] = {"cifar10": 0.3 * 10 / 9, "cifar100": 0.4 * 100 / 99}
"""The label has the probability 0.7 or 0.6 in the original, which gives the rest to the other classes; here it is
what all classes get alike."""


def _trained(
    dataset: _Cifar,
    model: Model,
    objective: LASAT | LASTRADES,
    *,
    epochs: int,
    decays: tuple[int, ...],
    awp: AWP | None = None,
) -> Train:
    return Train(
        dataset=dataset,
        model=model,
        objective=objective,
        threat=LINF_8,
        attack=_NEARBY if isinstance(objective, LASTRADES) else _UNIFORM,
        awp=awp,
        epochs=epochs,
        batch_size=128,
        optimizer=SGD(lr=0.1, weight_decay=5e-4, schedule=Steps(epochs=decays)),
        averaging=None,
        validation=HELD_OUT,
        select="best",
    )


def _levels(first: int, last: int) -> tuple[float, ...]:
    """From `first` / 255 to `last` / 255."""
    return tuple(level / 255 for level in range(first, last + 1))


def _las_at(dataset: _Cifar) -> Train:
    strategy = Strategy(
        eps=_levels(3, 15), steps=tuple(range(3, 15 if dataset == "cifar10" else 13)), step_sizes=_levels(1, 5)
    )
    objective = LASAT(label_smoothing=_SMOOTHING[dataset], strategy=strategy)
    return _trained(dataset, WRN_34_10, objective, epochs=110, decays=(99, 104))


def _las_trades(dataset: _Cifar) -> Train:
    strategy = Strategy(
        eps=_levels(5, 9 if dataset == "cifar10" else 10),
        steps=tuple(range(7, 15)),
        step_sizes=_levels(2, 4),
        every=1,
        reward=Reward(robust=8.0, clean=4.0 if dataset == "cifar10" else 2.0),
    )
    objective = LASTRADES(betas=(5.0, 6.0, 7.0, 8.0, 9.0), strategy=strategy)
    return _trained(dataset, WRN_34_10, objective, epochs=100, decays=(75, 90))


def _las_awp(dataset: _Cifar, model: Model = WRN_34_10) -> Train:
    """Wider radii and more steps, but images cut back to 8/255; weights perturbed as in AT-AWP."""
    strategy = Strategy(
        eps=_levels(7, 15),
        steps=tuple(range(8, 17 if dataset == "cifar10" else 16)),
        step_sizes=_levels(2, 5),
        clip_to_threat=True,
        every=1 if dataset == "cifar10" else 10,
        reward=Reward(robust=1.0, clean=1.0) if dataset == "cifar10" else Reward(),
    )
    awp = AWP(gamma=0.01, first_epoch=1)
    return _trained(dataset, model, LASAT(strategy=strategy), epochs=200, decays=(101, 151), awp=awp)


_CHOSEN_HERE = (
    "Not taken from the original, and chosen here: the strategy's optimiser (Adam), what batch norms do while "
    "attacking (eval mode), where the loss in its reward is cut (5), augmentation and weight decay (5e-4), and "
    "its epoch (the best on held-out training images)."
)
_AWP_ABOUT = (
    "LAS-AWP, which the IKL-AT paper calls LAS-AT: learnt attack strategies with AWP. "
    f"{_CHOSEN_HERE} So is when AWP begins (with the first epoch, as in AT-AWP)."
)
_AS_LAS_AWP = "RobustBench calls it LAS-AT and does not say which of the three; it is taken to be LAS-AWP."
_NO_NUMBER = "No number for it was found in a source that could be read."

_PUBLISHED: dict[str, Named] = {
    "las-at-cifar10-wrn-34-10": Named(
        _las_at("cifar10"),
        f"LAS-AT: PGD-AT with learnt attack strategies, the label's probability 0.7. {_NO_NUMBER} {_CHOSEN_HERE}",
    ),
    "las-at-cifar100-wrn-34-10": Named(
        _las_at("cifar100"),
        f"LAS-AT: PGD-AT with learnt attack strategies, the label's probability 0.6. {_NO_NUMBER} {_CHOSEN_HERE}",
    ),
    "las-trades-cifar10-wrn-34-10": Named(
        _las_trades("cifar10"),
        f"LAS-TRADES: TRADES with learnt attack strategies and betas. {_NO_NUMBER} {_CHOSEN_HERE}",
    ),
    "las-trades-cifar100-wrn-34-10": Named(
        _las_trades("cifar100"),
        f"LAS-TRADES: TRADES with learnt attack strategies and betas. {_NO_NUMBER} {_CHOSEN_HERE}",
    ),
    "las-awp-cifar10-wrn-34-10": Named(
        _las_awp("cifar10"),
        f"{_AWP_ABOUT} RobustBench lists another checkpoint, 84.98 / 56.26, as LAS-AT.",
        Published(0.8774, 0.5552, *DKL_TABLE_3),
        also=(Published(0.8774, 0.5552, *DKL_README), Published(0.8498, 0.5626, *ROBUSTBENCH)),
    ),
    "las-awp-cifar10-wrn-70-16": Named(
        _las_awp("cifar10", WideResNet(depth=70, width=16)),
        f"{_AWP_ABOUT} {_AS_LAS_AWP}",
        Published(0.8566, 0.5761, *ROBUSTBENCH),
    ),
    "las-awp-cifar100-wrn-34-10": Named(
        _las_awp("cifar100"),
        f"{_AWP_ABOUT} The READMEs of the IKL-AT code print 62.99 as its clean accuracy, which is LBGAT-AWP's.",
        Published(0.6489, 0.3077, *DKL_TABLE_2),
        also=(Published(0.6489, 0.3077, *ROBUSTBENCH),),
    ),
    "las-awp-cifar100-wrn-34-20": Named(
        _las_awp("cifar100", WideResNet(depth=34, width=20)),
        f"{_AWP_ABOUT} {_AS_LAS_AWP}",
        Published(0.6731, 0.3191, *ROBUSTBENCH),
    ),
}

# --- on digits, to be tried -------------------------------------------------------------------------------

_QUICK = Strategy(
    network=CNN(width=8),
    eps=(0.1, 0.15, 0.2, 0.25, 0.3),
    steps=(2, 3, 4, 5, 6),
    step_sizes=(0.05, 0.1),
    every=4,
    lr=1e-3,
    reward=Reward(normalisation="batch"),
)
"""Learns in tens of updates what the originals take tens of thousands for."""


def _digits(objective: LASAT | LASTRADES, awp: AWP | None = None) -> Train:
    attack = PGD(loss="ce", steps=5, relative_step_size=0.5, start="uniform", eps_schedule="constant")
    if isinstance(objective, LASTRADES):
        attack = attack.model_copy(update={"loss": "kl", "start": "gaussian"})
    return on_digits(objective, attack, awp)


_DIGITS: dict[str, Named] = {
    "las-at-digits": Named(
        _digits(LASAT(strategy=_QUICK)),
        "The same CNN with LAS-AT: a smaller one learns how strongly each image is to be attacked.",
    ),
    "las-trades-digits": Named(
        _digits(LASTRADES(strategy=_QUICK)), "The same CNN with LAS-TRADES, which learns betas, too."
    ),
    "las-awp-digits": Named(
        _digits(LASAT(strategy=_QUICK.model_copy(update={"clip_to_threat": True})), AWP()),
        "The same CNN with LAS-AWP: learnt strategies, images cut back to the threat, and AWP.",
    ),
}

LAS: dict[str, Named] = {**_PUBLISHED, **_DIGITS}
