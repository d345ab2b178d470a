"""The rivals with adversarial weight perturbation: AT-AWP, TRADES-AWP, MART-AWP (arXiv:2004.05884), ACAT
(arXiv:2210.15318), and the re-runs of TRADES-AWP in the tables of DAJAT. No torch.

"AWP" in the tables of the IKL-AT paper is AT-AWP on CIFAR-100 and TRADES-AWP on CIFAR-10.
"""

from typing import Literal

from dkl.architectures import Model, PreActResNet, ResNet, WideResNet
from dkl.catalog.entries import DAJAT, L2_128, LINF_8, ROBUSTBENCH, WRN_34_10, Named, Published
from dkl.catalog.rivals import HELD_OUT, pgd_at
from dkl.documents import ThreatModel
from dkl.objectives import AWP, MART, PGD, TRADES
from dkl.recipes import SGD, Cosine, StepEMA, Steps, Train

Cifar = Literal["cifar10", "cifar100"]
_AWP_REPO = ("README and logs of csdongxian/AWP", "https://github.com/csdongxian/AWP")

# --- Wu et al. --------------------------------------------------------------------------------------------


def _at_awp(dataset: Cifar, model: Model, threat: ThreatModel = LINF_8) -> Train:
    """PGD-AT as in Rice et al., with weights perturbed by a hundredth of their norm from the first epoch on."""
    return pgd_at(dataset, model, threat=threat).model_copy(update={"awp": AWP(gamma=0.01, first_epoch=1)})


def _host_attack(threat: ThreatModel, loss: Literal["ce", "kl"]) -> PGD:
    """Ten steps of 2/255 under Linf, of eps / 5 under L2."""
    linf = threat.norm == "Linf"
    return PGD(loss=loss, steps=10, relative_step_size=0.25 if linf else 0.2, eps_schedule="constant")


def _trades_awp(dataset: Cifar, threat: ThreatModel = LINF_8, objective: TRADES | MART | None = None) -> Train:
    """TRADES with beta 6 unless `objective` is another. Epochs 100 and 150 are at a lower rate already."""
    objective = objective or TRADES(beta=6.0)
    return Train(
        dataset=dataset,
        model=WRN_34_10,
        objective=objective,
        threat=threat,
        attack=_host_attack(threat, "kl" if isinstance(objective, TRADES) else "ce"),
        awp=AWP(gamma=0.005, first_epoch=10),
        epochs=200,
        batch_size=128,
        optimizer=SGD(lr=0.1, weight_decay=5e-4, schedule=Steps(epochs=(100, 150))),
        averaging=None,
        validation=HELD_OUT,
        select="best",
    )


_BEST = "The original chose the best epoch on the test set; here it is the best on held-out training images."
_ANY = "Its code keeps every epoch and does not say which is reported; here it is the best on held-out images."
_L2 = "Trained at 128/255, judged at 0.5; the steps of the attack are those of Rice et al."

_WU: dict[str, Named] = {
    "at-awp-cifar10-wrn-34-10": Named(
        _at_awp("cifar10", WRN_34_10),
        "PGD-AT with AWP. The README prints TRADES-AWP's clean accuracy, 85.36, in this row; its log says 86.23. "
        f"{_BEST}",
        Published(0.8623, 0.5397, *_AWP_REPO),
    ),
    "at-awp-cifar100-preact-resnet-18": Named(
        _at_awp("cifar100", PreActResNet()), f"PGD-AT with AWP. {_BEST}", Published(0.5381, 0.2534, *_AWP_REPO)
    ),
    "at-awp-cifar100-wrn-34-10": Named(
        _at_awp("cifar100", WRN_34_10),
        f"PGD-AT with AWP, which the IKL-AT paper calls AWP. {_BEST}",
        Published(0.6038, 0.2886, *_AWP_REPO),
    ),
    "at-awp-cifar10-preact-resnet-18-l2": Named(
        _at_awp("cifar10", PreActResNet(), L2_128),
        f"PGD-AT with AWP under L2. {_L2} {_BEST}",
        Published(0.9011, 0.7031, *_AWP_REPO, eps=0.5),
    ),
    "at-awp-cifar10-wrn-34-10-l2": Named(
        _at_awp("cifar10", WRN_34_10, L2_128),
        f"PGD-AT with AWP under L2. {_L2} {_BEST}",
        Published(0.9258, 0.7287, *_AWP_REPO, eps=0.5),
    ),
    "trades-awp-cifar10-wrn-34-10": Named(
        _trades_awp("cifar10"),
        f"TRADES with AWP, which the IKL-AT paper calls AWP. {_ANY}",
        Published(0.8536, 0.5617, *ROBUSTBENCH),
    ),
    "trades-awp-cifar10-wrn-34-10-l2": Named(
        _trades_awp("cifar10", L2_128),
        f"TRADES with AWP under L2, trained at 128/255 and judged at 0.5. {_ANY}",
        Published(0.8851, 0.7366, *ROBUSTBENCH, eps=0.5),
    ),
    "trades-awp-cifar100-wrn-34-10": Named(
        _trades_awp("cifar100"), f"TRADES with AWP. {_ANY}", Published(0.6017, 0.2880, *_AWP_REPO)
    ),
    "mart-awp-cifar10-wrn-34-10": Named(
        _trades_awp("cifar10", objective=MART(beta=6.0)),
        "MART with AWP. Only the number is published; everything but the losses is TRADES-AWP's.",
        Published(0.8443, 0.5423, *_AWP_REPO),
    ),
}

# --- ACAT, and TRADES-AWP as the authors of DAJAT ran it --------------------------------------------------

COSINE = SGD(lr=0.2, weight_decay=5e-4, schedule=Cosine(from_full=True))
SINCE_THREE_QUARTERS = StepEMA(decay=0.9996, start=0.75, ramp=False, statistics="averaged")
"""Of 110 epochs from the middle of epoch 83 on. train_DAJAT.py of val-iisc/DAJAT has (150 * 110) // 200 = 82, so
averages from the beginning of epoch 83; the file that its run.sh judges was averaged from that of epoch 84."""

BETA: dict[tuple[Cifar, str], float] = {
    ("cifar10", "resnet"): 11.0,
    ("cifar10", "wide-resnet"): 10.0,
    ("cifar100", "resnet"): 9.0,
    ("cifar100", "wide-resnet"): 9.0,
}
"""DAJAT's. ACAT's are not stated reliably: run.sh of val-iisc/DAJAT has the defaults of ResNet-18 on CIFAR-10 for
both networks and data sets, and the README's command ends with --beta and no number."""

SMOOTHING: dict[Cifar, float] = {"cifar10": 0.0, "cifar100": 0.1 * 100 / 99}
"""The original gives 0.1 to the other 99 classes; here it is what all classes get alike."""


def _acat(dataset: Cifar, model: ResNet | WideResNet) -> Train:
    """TRADES with AWP at two steps as long as the radius, which grows."""
    return Train(
        dataset=dataset,
        model=model,
        objective=TRADES(beta=BETA[dataset, model.kind], label_smoothing=SMOOTHING[dataset]),
        threat=LINF_8,
        attack=PGD(loss="kl", steps=2, relative_step_size=1.0, eps_schedule="linear"),
        awp=AWP(gamma=0.005, first_epoch=10),
        epochs=110,
        batch_size=128,
        optimizer=COSINE,
        averaging=SINCE_THREE_QUARTERS,
    )


_ACAT_ABOUT = "ACAT: TRADES-AWP with two attack steps. Its beta is not stated reliably; it is DAJAT's default."

_ACAT: dict[str, Named] = {
    "acat-cifar10-resnet-18": Named(_acat("cifar10", ResNet()), _ACAT_ABOUT, Published(0.8241, 0.4980, *DAJAT)),
    "acat-cifar10-wrn-34-10": Named(
        _acat("cifar10", WRN_34_10),
        f"{_ACAT_ABOUT} The IKL-AT paper prints 82.41 as its clean accuracy, which is ResNet-18's.",
        Published(0.8671, 0.5536, *DAJAT),
    ),
    "acat-cifar100-resnet-18": Named(_acat("cifar100", ResNet()), _ACAT_ABOUT, Published(0.6205, 0.2610, *DAJAT)),
    "acat-cifar100-wrn-34-10": Named(
        _acat("cifar100", WRN_34_10),
        f"{_ACAT_ABOUT} The rows ACAT with AutoAugment of the IKL-AT paper are DAJAT, another method.",
        Published(0.6575, 0.3023, *DAJAT),
    ),
}


def _rerun(
    dataset: Cifar,
    model: ResNet | WideResNet,
    clean: float,
    robust: float,
    *,
    averaged: bool = False,
    epochs: Literal[110, 200] = 110,
) -> Named:
    """TRADES-AWP of the tables of DAJAT: attack and AWP of Wu et al., optimiser and averaging of ACAT."""
    recipe = Train(
        dataset=dataset,
        model=model,
        objective=TRADES(beta=6.0),
        threat=LINF_8,
        attack=_host_attack(LINF_8, "kl"),
        awp=AWP(gamma=0.005, first_epoch=10),
        epochs=epochs,
        batch_size=128,
        optimizer=COSINE,
        averaging=SINCE_THREE_QUARTERS if averaged else None,
    )
    about = (
        f"TRADES-AWP as the authors of DAJAT ran it, {epochs} epochs{', weights averaged' if averaged else ''}. "
        "Only the numbers are published: attack and AWP are Wu et al.'s here, the optimiser is ACAT's."
    )
    return Named(recipe, about, Published(clean, robust, *DAJAT))


_R18 = ResNet()
_RERUNS: dict[str, Named] = {
    "trades-awp-cifar10-resnet-18-dajat": _rerun("cifar10", _R18, 0.8047, 0.4987),
    "trades-awp-cifar10-resnet-18-dajat-wa": _rerun("cifar10", _R18, 0.8041, 0.4967, averaged=True),
    "trades-awp-cifar10-resnet-18-dajat-wa-200": _rerun(
        "cifar10", _R18, 0.8199, 0.5145, averaged=True, epochs=200
    ),
    "trades-awp-cifar10-wrn-34-10-dajat": _rerun("cifar10", WRN_34_10, 0.8519, 0.5569),
    "trades-awp-cifar10-wrn-34-10-dajat-wa": _rerun("cifar10", WRN_34_10, 0.8510, 0.5587, averaged=True),
    "trades-awp-cifar100-resnet-18-dajat": _rerun("cifar100", _R18, 0.5881, 0.2530),
    "trades-awp-cifar100-resnet-18-dajat-wa": _rerun("cifar100", _R18, 0.5988, 0.2552, averaged=True),
    "trades-awp-cifar100-resnet-18-dajat-wa-200": _rerun(
        "cifar100", _R18, 0.5911, 0.2597, averaged=True, epochs=200
    ),
    "trades-awp-cifar100-wrn-34-10-dajat": _rerun("cifar100", WRN_34_10, 0.6241, 0.2954),
    "trades-awp-cifar100-wrn-34-10-dajat-wa": _rerun("cifar100", WRN_34_10, 0.6273, 0.2959, averaged=True),
    "trades-awp-cifar100-wrn-34-10-dajat-wa-200": _rerun(
        "cifar100", WRN_34_10, 0.6030, 0.2868, averaged=True, epochs=200
    ),
}

PERTURBED: dict[str, Named] = {**_WU, **_ACAT, **_RERUNS}
