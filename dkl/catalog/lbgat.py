"""LBGAT (arXiv:2011.11164): a clean ResNet-18 learns along and guides the robust network. No torch."""

from dkl.architectures import WideResNet
from dkl.catalog.entries import LINF_8, ROBUSTBENCH, WRN_34_10, Named, Published
from dkl.catalog.perturbed import Cifar
from dkl.documents import ThreatModel
from dkl.objectives import AWP, LBGAT, PGD
from dkl.recipes import SGD, Steps, Train

_README = ("README of dvlab-research/LBGAT", "https://github.com/dvlab-research/LBGAT")
_LINF_031 = ThreatModel(norm="Linf", eps=0.031)
_STEP = 0.007
WRN_34_20 = WideResNet(depth=34, width=20)


def _lbgat(
    dataset: Cifar, model: WideResNet, beta: float, *, threat: ThreatModel = _LINF_031, awp: AWP | None = None
) -> Train:
    """The script has 100 epochs, the files of its checkpoints the numbers 92 (beta 0) and 91 (beta 6)."""
    return Train(
        dataset=dataset,
        model=model,
        objective=LBGAT(beta=beta),
        threat=threat,
        attack=PGD(loss="kl", steps=10, relative_step_size=_STEP / threat.eps, eps_schedule="constant"),
        awp=awp,
        epochs=91 if beta else 92,
        batch_size=128,
        optimizer=SGD(lr=0.1, weight_decay=2e-4, schedule=Steps(epochs=(76, 91), first_epoch=0.2)),
        averaging=None,
    )


_ABOUT = "LBGAT with beta {} and a clean ResNet-18 that learns along, trained and judged at eps 0.031, not 8/255."
_BETA_0, _BETA_6 = _ABOUT.format(0), _ABOUT.format(6)
_ENDS_92 = "The original runs 100 epochs and publishes about the 92nd, with which this recipe ends."
_ENDS_91 = "The original runs 100 epochs and publishes about the 91st, with which this recipe ends."
_CIFAR10 = "Only the CIFAR-100 script is published; its settings are taken for CIFAR-10."
_NO_ROW = "Not a row of a paper."
_WITH_AWP = (
    "Only the number is published: the perturbation is that of TRADES-AWP and acts on the robust network alone, "
    "the rest is LBGAT's."
)

LBGAT_RECIPES: dict[str, Named] = {
    "lbgat-cifar100-wrn-34-10-beta0": Named(
        _lbgat("cifar100", WRN_34_10, 0.0), f"{_BETA_0} {_ENDS_92}", Published(0.7025, 0.2716, *_README)
    ),
    "lbgat-cifar100-wrn-34-10-beta6": Named(
        _lbgat("cifar100", WRN_34_10, 6.0),
        f"{_BETA_6} {_ENDS_91} The README of IKL-AT prints 62.31 as its clean accuracy, which is LBGAT-AWP's.",
        Published(0.6064, 0.2933, *_README),
    ),
    "lbgat-cifar100-wrn-34-20-beta0": Named(_lbgat("cifar100", WRN_34_20, 0.0), f"{_BETA_0} {_ENDS_92} {_NO_ROW}"),
    "lbgat-cifar100-wrn-34-20-beta6": Named(
        _lbgat("cifar100", WRN_34_20, 6.0), f"{_BETA_6} {_ENDS_91}", Published(0.6255, 0.3020, *_README)
    ),
    "lbgat-cifar10-wrn-34-10-beta0": Named(
        _lbgat("cifar10", WRN_34_10, 0.0),
        f"{_BETA_0} {_CIFAR10} {_ENDS_92}",
        Published(0.8822, 0.5286, *_README),
    ),
    "lbgat-cifar10-wrn-34-10-beta6": Named(
        _lbgat("cifar10", WRN_34_10, 6.0), f"{_BETA_6} {_CIFAR10} {_ENDS_91} {_NO_ROW}"
    ),
    "lbgat-cifar10-wrn-34-20-beta0": Named(
        _lbgat("cifar10", WRN_34_20, 0.0),
        f"{_BETA_0} {_CIFAR10} {_ENDS_92}",
        Published(0.8870, 0.5357, *_README),
    ),
    "lbgat-cifar10-wrn-34-20-beta6": Named(
        _lbgat("cifar10", WRN_34_20, 6.0), f"{_BETA_6} {_CIFAR10} {_ENDS_91} {_NO_ROW}"
    ),
    "lbgat-cifar100-wrn-34-10-awp-beta6": Named(
        _lbgat("cifar100", WRN_34_10, 6.0, threat=LINF_8, awp=AWP()),
        f"LBGAT with AWP at 8/255. {_WITH_AWP} Its beta is not published either; 6 is LBGAT's.",
        Published(0.6231, 0.3044, *_README),
    ),
    "lbgat-cifar100-wrn-34-10-awp-beta9": Named(
        _lbgat("cifar100", WRN_34_10, 9.0, threat=LINF_8, awp=AWP()),
        f"LBGAT with AWP at 8/255, the row LBGAT-AWP*. {_WITH_AWP} What the star stands for is not said; beta 9 "
        "is known from the name of the checkpoint.",
        Published(0.6299, 0.3120, *_README),
        also=(Published(0.6299, 0.3120, *ROBUSTBENCH),),
    ),
}
