"""Natural training, PGD-AT, TRADES and MART, without weight perturbation. No torch.

PGD-AT takes its best epoch, on the test set in the original, on 1,000 held-out training images here.
"""

from typing import Literal

from dkl.architectures import Model, PreActResNet, ResNet, WideResNet
from dkl.catalog.entries import DAJAT, L2_128, LINF_8, NORMALISATION, ROBUSTBENCH, WRN_34_10, Named, Published
from dkl.documents import ThreatModel
from dkl.objectives import MART, PGD, PGDAT, TRADES, Natural
from dkl.recipes import SGD, Augmentation, Steps, Train, Validation

HELD_OUT = Validation(images=1000, steps=10)
_AUGMENTATION = {
    "cifar10": Augmentation(padding="reflect"),
    "cifar100": Augmentation(rotation=15.0),
}
"""Of Rice et al., and of AT-AWP after them."""

_LBGAT = ("README of dvlab-research/LBGAT", "https://github.com/dvlab-research/LBGAT")

# --- PGD-AT: Madry et al., as in Rice et al. --------------------------------------------------------------


def _rice_attack(threat: ThreatModel, steps: int = 10) -> PGD:
    """Steps of 2/255 under Linf and of 15/255 under L2; batch norms learn from every one of them."""
    step_size = 2 / 255 if threat.norm == "Linf" else 15 / 255
    return PGD(
        loss="ce",
        steps=steps,
        relative_step_size=step_size / threat.eps,
        start="uniform",
        mode="train",
        eps_schedule="constant",
    )


_RICE_OPTIMIZER = SGD(lr=0.1, weight_decay=5e-4, schedule=Steps(epochs=(101, 151)))
"""Epochs 1 to 100 at the full learning rate; the last batch of the 100th, in the original, already at a tenth."""


def _normalising(model: Model, dataset: Literal["cifar10", "cifar100"]) -> Model:
    """`model`, which normalises pixels itself, as Rice et al. and AT-AWP do in front of theirs."""
    if not isinstance(model, PreActResNet | WideResNet):
        return model
    return model.model_copy(update={"normalisation": NORMALISATION[dataset]})


def pgd_at(
    dataset: Literal["cifar10", "cifar100"],
    model: Model,
    *,
    threat: ThreatModel = LINF_8,
    steps: int = 10,
    select: Literal["best", "last"] = "best",
) -> Train:
    """PGD-AT as in Rice et al., on `dataset` with `model`."""
    return Train(
        dataset=dataset,
        augmentation=_AUGMENTATION[dataset],
        model=_normalising(model, dataset),
        objective=PGDAT(),
        threat=threat,
        attack=_rice_attack(threat, steps),
        epochs=200,
        batch_size=128,
        optimizer=_RICE_OPTIMIZER,
        averaging=None,
        validation=HELD_OUT if select == "best" else None,
        select=select,
    )


_BEST_EPOCH = "The original chose the best epoch on the test set, this recipe does on held-out training images."

_PGD_AT: dict[str, Named] = {
    "pgd-at-cifar10-preact-resnet-18": Named(
        pgd_at("cifar10", PreActResNet()),
        "PGD-AT as in Rice et al. (arXiv:2002.11569), mostly on this network. No AutoAttack number is published.",
    ),
    "pgd-at-cifar10-resnet-18": Named(
        pgd_at("cifar10", ResNet()),
        "PGD-AT as in Rice et al. The number is a re-run by the authors of DAJAT, whose settings are unknown.",
        Published(0.8112, 0.4875, *DAJAT),
    ),
    "pgd-at-cifar10-wrn-34-10": Named(
        pgd_at("cifar10", WRN_34_10),
        "PGD-AT as in Rice et al. The number is a re-run by the authors of DAJAT, whose settings are unknown.",
        Published(0.8607, 0.5219, *DAJAT),
    ),
    "pgd-at-cifar10-wrn-34-10-madry": Named(
        pgd_at("cifar10", WRN_34_10, steps=7, select="last"),
        "PGD-AT nearer to its original (arXiv:1706.06083): 7 steps, last epoch. The rest is as in Rice et al.; "
        "the original, in TensorFlow, claims 47.04.",
        Published(0.8714, 0.4404, *ROBUSTBENCH),
    ),
    "pgd-at-cifar10-wrn-34-20": Named(
        pgd_at("cifar10", WideResNet(depth=34, width=20)),
        f"The row of Rice et al. {_BEST_EPOCH}",
        Published(0.8534, 0.5342, *ROBUSTBENCH),
    ),
    "pgd-at-cifar10-preact-resnet-18-l2": Named(
        pgd_at("cifar10", PreActResNet(), threat=L2_128),
        f"The row of Rice et al. under L2, trained at 128/255 and judged at 0.5. {_BEST_EPOCH}",
        Published(0.8867, 0.6768, *ROBUSTBENCH, eps=0.5),
    ),
    "pgd-at-cifar100-preact-resnet-18": Named(
        pgd_at("cifar100", PreActResNet(), select="last"),
        "The row of Rice et al. on CIFAR-100. Its clean accuracy is that of the last epoch in the authors' log, "
        "after robust overfitting, so this recipe keeps the last epoch; the 28.1 they report is of their best.",
        Published(0.5383, 0.1895, *ROBUSTBENCH),
    ),
}

# --- TRADES and MART --------------------------------------------------------------------------------------

_LINF_031 = ThreatModel(norm="Linf", eps=0.031)


def _unramped(loss: Literal["ce", "kl"]) -> PGD:
    """Ten steps of 0.007 at the radius 0.031."""
    return PGD(loss=loss, steps=10, relative_step_size=0.007 / 0.031, eps_schedule="constant")


def _trades(dataset: Literal["cifar10", "cifar100"], model: Model = WRN_34_10) -> Train:
    return Train(
        dataset=dataset,
        model=model,
        objective=TRADES(beta=6.0),
        threat=_LINF_031,
        attack=_unramped("kl"),
        epochs=76,
        batch_size=128,
        optimizer=SGD(lr=0.1, weight_decay=2e-4, schedule=Steps(epochs=(75,))),
        averaging=None,
    )


def _mart(model: Model, objective: MART, optimizer: SGD, epochs: int) -> Train:
    return Train(
        dataset="cifar10",
        model=model,
        objective=objective,
        threat=_LINF_031,
        attack=_unramped("ce"),
        epochs=epochs,
        batch_size=128,
        optimizer=optimizer,
        averaging=None,
    )


_NOT_OURS = "RobustBench's entry (87.50 / 56.29) is a WRN-28-10 with 500,000 more real images, and not this."

_TRADES_AND_MART: dict[str, Named] = {
    "trades-cifar10-wrn-34-10": Named(
        _trades("cifar10"),
        "TRADES, beta 6, as its authors trained and judged it: eps 0.031, not 8/255. The README of LBGAT prints "
        "52.64 for it.",
        Published(0.8492, 0.5308, *ROBUSTBENCH),
        also=(Published(0.8492, 0.5264, *_LBGAT),),
    ),
    "trades-cifar10-preact-resnet-18": Named(
        _trades("cifar10", PreActResNet()),
        "TRADES with its authors' settings on the smaller PreActResNet-18; not a row of a paper.",
    ),
    "trades-cifar100-wrn-34-10": Named(
        _trades("cifar100"),
        "TRADES, beta 6, eps 0.031. The number is a re-run by the authors of LBGAT, whose schedule is unknown; "
        "here it is that of TRADES on CIFAR-10.",
        Published(0.5650, 0.2687, *_LBGAT),
    ),
    "mart-cifar10-wrn-34-10": Named(
        _mart(
            WRN_34_10,
            MART(beta=6.0),
            SGD(lr=0.1, weight_decay=7e-4, schedule=Steps(epochs=(75, 90))),
            epochs=90,
        ),
        f"MART, beta 6, as in its code, of which the author also says 100 epochs. {_NOT_OURS}",
    ),
    "mart-cifar10-resnet-18": Named(
        _mart(
            ResNet(),
            MART(beta=5.0),
            SGD(lr=0.01, weight_decay=3.5e-3, schedule=Steps(epochs=(75, 90, 100))),
            epochs=120,
        ),
        f"MART, beta 5, as in its code. {_NOT_OURS}",
    ),
}

_NATURAL: dict[str, Named] = {
    "natural-cifar10-preact-resnet-18": Named(
        Train(
            dataset="cifar10",
            model=PreActResNet(),
            objective=Natural(),
            epochs=100,
            optimizer=SGD(lr=0.1),
        ),
        "PreActResNet-18 on clean CIFAR-10: the undefended baseline.",
    ),
}

RIVALS: dict[str, Named] = {**_NATURAL, **_PGD_AT, **_TRADES_AND_MART}
