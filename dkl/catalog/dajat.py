"""DAJAT (arXiv:2210.15318): a base view and AutoAugment views with batch norms of their own. No torch.

ACAT, the same without views, is in `dkl.catalog.perturbed`.
"""

from typing import Literal

from dkl.architectures import ResNet, WideResNet
from dkl.catalog.entries import DAJAT as README
from dkl.catalog.entries import DKL_TABLE_2, DKL_TABLE_3, LINF_8, ROBUSTBENCH, WRN_34_10, Named, Published
from dkl.catalog.perturbed import BETA, COSINE, SINCE_THREE_QUARTERS, SMOOTHING, Cifar
from dkl.objectives import AWP, DAJAT, PGD
from dkl.recipes import Train

_CONSISTENCY: dict[tuple[Cifar, str], float] = {
    ("cifar10", "resnet"): 2.0,
    ("cifar10", "wide-resnet"): 3.0,
    ("cifar100", "resnet"): 2.0,
    ("cifar100", "wide-resnet"): 2.0,
}


def _dajat(dataset: Cifar, model: ResNet | WideResNet, views: int, epochs: Literal[110, 200] = 110) -> Train:
    """Two attack steps as long as the radius in 110 epochs; five of half of it in 200, as the code does."""
    high = epochs == 200
    return Train(
        dataset=dataset,
        model=model,
        objective=DAJAT(
            views=views,
            beta=BETA[dataset, model.kind],
            consistency=_CONSISTENCY[dataset, model.kind],
            label_smoothing=SMOOTHING[dataset],
        ),
        threat=LINF_8,
        attack=PGD(
            loss="kl",
            steps=5 if high else 2,
            relative_step_size=0.5 if high else 1.0,
            eps_schedule="linear",
        ),
        awp=AWP(gamma=0.005, first_epoch=10),
        epochs=epochs,
        batch_size=128,
        optimizer=COSINE,
        averaging=SINCE_THREE_QUARTERS,
    )


_DEFAULTS = "beta and consistency are the defaults of the code, which is written for 200 epochs."
_THREE = "The published code has two views at most; the third is like them."
_FIVE_STEPS = (
    "The code means to take 2, 3, 4 and 5 attack steps in the four quarters, but always takes 5, and so does this "
    "recipe."
)


def _short(
    dataset: Cifar,
    model: ResNet | WideResNet,
    views: int,
    clean: float,
    robust: float,
    *,
    said: str = "",
    also: tuple[Published, ...] = (),
) -> Named:
    shown = f"{views} AutoAugment views" if views > 1 else "one AutoAugment view"
    about = [f"DAJAT with {shown}, 110 epochs: {_DEFAULTS}", _THREE if views > 2 else "", said]
    return Named(
        _dajat(dataset, model, views), " ".join(filter(None, about)), Published(clean, robust, *README), also=also
    )


def _long(
    dataset: Cifar, model: ResNet | WideResNet, clean: float, robust: float, also: tuple[Published, ...] = ()
) -> Named:
    about = f"DAJAT with 2 AutoAugment views, 200 epochs, as its code has them. {_FIVE_STEPS}"
    return Named(_dajat(dataset, model, 2, epochs=200), about, Published(clean, robust, *README), also=also)


_CALLED_ACAT = "The IKL-AT paper prints this row as ACAT with AutoAugment."
_R18 = ResNet()

DAJAT_RECIPES: dict[str, Named] = {
    "dajat-cifar10-resnet-18-1aa": _short("cifar10", _R18, 1, 0.8560, 0.5106),
    "dajat-cifar10-resnet-18-2aa": _short("cifar10", _R18, 2, 0.8599, 0.5148),
    "dajat-cifar10-resnet-18-3aa": _short("cifar10", _R18, 3, 0.8667, 0.5156),
    "dajat-cifar10-resnet-18-2aa-200": _long(
        "cifar10", _R18, 0.8571, 0.5250, also=(Published(0.8571, 0.5248, *ROBUSTBENCH),)
    ),
    "dajat-cifar10-wrn-34-10-1aa": _short("cifar10", WRN_34_10, 1, 0.8787, 0.5668),
    "dajat-cifar10-wrn-34-10-2aa": _short("cifar10", WRN_34_10, 2, 0.8890, 0.5696),
    "dajat-cifar10-wrn-34-10-3aa": _short(
        "cifar10",
        WRN_34_10,
        3,
        0.8864,
        0.5705,
        said=_CALLED_ACAT,
        also=(Published(0.8864, 0.5705, *DKL_TABLE_3),),
    ),
    "dajat-cifar10-wrn-34-10-2aa-200": _long(
        "cifar10", WRN_34_10, 0.8871, 0.5781, also=(Published(0.8871, 0.5781, *ROBUSTBENCH),)
    ),
    "dajat-cifar100-resnet-18-1aa": _short("cifar100", _R18, 1, 0.6575, 0.2721),
    "dajat-cifar100-resnet-18-2aa": _short("cifar100", _R18, 2, 0.6684, 0.2732),
    "dajat-cifar100-resnet-18-3aa": _short("cifar100", _R18, 3, 0.6696, 0.2762),
    "dajat-cifar100-resnet-18-2aa-200": _long(
        "cifar100", _R18, 0.6545, 0.2769, also=(Published(0.6545, 0.2767, *ROBUSTBENCH),)
    ),
    "dajat-cifar100-wrn-34-10-1aa": _short("cifar100", WRN_34_10, 1, 0.6782, 0.3126),
    "dajat-cifar100-wrn-34-10-2aa": _short(
        "cifar100",
        WRN_34_10,
        2,
        0.6874,
        0.3130,
        said=_CALLED_ACAT,
        also=(Published(0.6874, 0.3130, *DKL_TABLE_2),),
    ),
    "dajat-cifar100-wrn-34-10-3aa": _short("cifar100", WRN_34_10, 3, 0.7035, 0.3089),
    "dajat-cifar100-wrn-34-10-2aa-200": _long(
        "cifar100", WRN_34_10, 0.6875, 0.3185, also=(Published(0.6875, 0.3185, *ROBUSTBENCH),)
    ),
}
