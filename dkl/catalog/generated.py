"""Training with generated images: DM-AT (arXiv:2302.04638), and IKL-AT and GKL-AT in its frame. No torch.

Only DM-AT's code is public. Batch sizes and epochs beyond one million images, and the fraction 0.8, are known at
second hand. The IKL-AT and GKL-AT papers say that they follow DM-AT and replace the KL loss; see _UNKNOWN.
"""

from typing import Literal

from dkl.architectures import SwishWideResNet
from dkl.catalog.entries import (
    DKL_README,
    DKL_TABLE_2,
    DKL_TABLE_3,
    GKL_README,
    L2_128,
    LINF_8,
    NORMALISATION,
    ROBUSTBENCH,
    Named,
    Published,
)
from dkl.documents import ThreatModel
from dkl.objectives import GKL, IKL, PGD, TRADES, Objective
from dkl.recipes import SGD, Augmentation, Generated, OneCycle, StepEMA, Train, Validation

_Cifar = Literal["cifar10", "cifar100"]
_ROTATION: dict[str, float] = {"cifar10": 0.0, "cifar100": 15.0}
_TRADES = TRADES(beta=5.0, label_smoothing=0.1)
_SIZE = (28, 10)
_LARGE = (70, 16)


def _recipe(
    dataset: _Cifar,
    images: Literal["1m", "20m", "50m"],
    *,
    batch_size: int,
    epochs: int,
    objective: Objective = _TRADES,
    threat: ThreatModel = LINF_8,
    size: tuple[int, int] = _SIZE,
) -> Train:
    """DM-AT's frame. Its attack draws no uniform start under L2, and takes steps of 2 eps / 10 there."""
    linf = threat.norm == "Linf"
    return Train(
        dataset=dataset,
        generated=Generated(file=f"{dataset}_{images}", fraction=0.7 if images == "1m" else 0.8),
        augmentation=Augmentation(rotation=_ROTATION[dataset]),
        model=SwishWideResNet(depth=size[0], width=size[1], normalisation=NORMALISATION[dataset]),
        objective=objective,
        threat=threat,
        attack=PGD(
            loss="kl",
            steps=10,
            relative_step_size=0.25 if linf else 0.2,
            start="uniform" if linf else "gaussian",
            mode="batch",
            eps_schedule="constant",
        ),
        epochs=epochs,
        batch_size=batch_size,
        optimizer=SGD(
            lr=0.2, schedule=OneCycle(rise=0.025), nesterov=True, weight_decay=5e-4, decay_batch_norms=False
        ),
        averaging=StepEMA(decay=0.995, start=0.025, ramp=True),
        validation=Validation(images=1024, steps=40),
        select="best",
    )


# --- DM-AT ------------------------------------------------------------------------------------------------

_DM_PAPER = (
    "Wang et al., Better Diffusion Models Further Improve Adversarial Training, ICML 2023, Table 2",
    "https://arxiv.org/abs/2302.04638",
)
_DM_README = ("README of wzekai99/DM-Improves-AT", "https://github.com/wzekai99/DM-Improves-AT")
_SECOND_HAND = "Batch size, epochs and the fraction 0.8 are known at second hand."
_UNCHECKED = "The published number is second-hand, too, and not yet checked against the paper."
_L2 = (
    "RobustBench judges at 0.5, the README at 128/255. Batch size and epochs under L2 are not known to us; they "
    "are those under Linf."
)

_DM_AT: dict[str, Named] = {
    "dm-at-cifar10-wrn-28-10-1m": Named(
        _recipe("cifar10", "1m", batch_size=512, epochs=400),
        "DM-AT with one million generated images: the command of its README.",
        Published(0.9112, 0.6335, *_DM_PAPER),
    ),
    "dm-at-cifar10-wrn-28-10-1m-800-epochs": Named(
        _recipe("cifar10", "1m", batch_size=1024, epochs=800),
        f"DM-AT with one million generated images and more epochs. {_UNCHECKED}",
        Published(0.9143, 0.6396, *_DM_PAPER),
    ),
    "dm-at-cifar10-wrn-28-10-20m": Named(
        _recipe("cifar10", "20m", batch_size=2048, epochs=2400),
        f"DM-AT's best WRN-28-10 on CIFAR-10. {_SECOND_HAND}",
        Published(0.9244, 0.6731, *_DM_PAPER),
    ),
    "dm-at-cifar10-wrn-28-10-50m": Named(
        _recipe("cifar10", "50m", batch_size=2048, epochs=1600),
        f"DM-AT with 50 million generated images. {_SECOND_HAND} {_UNCHECKED}",
        Published(0.9227, 0.6717, *_DM_PAPER),
    ),
    "dm-at-cifar10-wrn-70-16-50m": Named(
        _recipe("cifar10", "50m", batch_size=1024, epochs=2000, size=_LARGE),
        f"DM-AT's largest network on CIFAR-10. {_SECOND_HAND}",
        Published(0.9325, 0.7069, *_DM_PAPER),
    ),
    "dm-at-cifar10-wrn-28-10-l2-50m": Named(
        _recipe("cifar10", "50m", batch_size=2048, epochs=1600, threat=L2_128),
        f"DM-AT under L2. {_L2}",
        Published(0.9516, 0.8368, *ROBUSTBENCH, eps=0.5),
        also=(Published(0.9516, 0.8363, *_DM_README),),
    ),
    "dm-at-cifar10-wrn-70-16-l2-50m": Named(
        _recipe("cifar10", "50m", batch_size=1024, epochs=2000, size=_LARGE, threat=L2_128),
        f"DM-AT's largest network under L2. {_L2}",
        Published(0.9554, 0.8497, *ROBUSTBENCH, eps=0.5),
        also=(Published(0.9554, 0.8486, *_DM_README),),
    ),
    "dm-at-cifar100-wrn-28-10-1m": Named(
        _recipe("cifar100", "1m", batch_size=512, epochs=400),
        "DM-AT with one million generated images, with the settings of its README for CIFAR-10.",
        Published(0.6806, 0.3565, *_DM_PAPER),
    ),
    "dm-at-cifar100-wrn-28-10-50m": Named(
        _recipe("cifar100", "50m", batch_size=2048, epochs=1600),
        f"DM-AT's WRN-28-10 on CIFAR-100; another attack (MALT) brings it to 38.77. {_SECOND_HAND}",
        Published(0.7258, 0.3883, *_DM_PAPER),
    ),
    "dm-at-cifar100-wrn-70-16-50m": Named(
        _recipe("cifar100", "50m", batch_size=1024, epochs=1600, size=_LARGE),
        f"DM-AT's largest network on CIFAR-100; another attack (MALT) brings it to 42.66. {_SECOND_HAND}",
        Published(0.7522, 0.4267, *_DM_PAPER),
    ),
}

# --- IKL-AT and GKL-AT ------------------------------------------------------------------------------------

_UNKNOWN = (
    "The training code is unpublished: what is attacked (here KL, as in DM-AT), whether label smoothing stays "
    "(here not), whether generated images count in the class prior (here they do) and the epochs are unknown."
)
_FILE_NAME = "The weights are those in the name of the published checkpoint."
_BORROWED = "The weights are unknown, too; they are those of the larger set."

_IKL_CIFAR10 = IKL(ce_weight=3.0, wmse_weight=10.0, prior_temperature=4.0)
_IKL_CIFAR100 = IKL(ce_weight=5.0, wmse_weight=12.0, prior_temperature=4.0)
_GKL_CIFAR10 = GKL(ce_weight=3.0, wmse_weight=10.0, prior_temperature=4.0)
_GKL_CIFAR100 = GKL(ce_weight=5.0, wmse_weight=12.0, prior_temperature=4.0)
_GKL_SMOOTH = GKL(ce_weight=5.0, wmse_weight=12.0, prior_temperature=1.0, gamma=0.4)
_SAME_ROW = "GKL's settings are unknown; the README repeats IKL-AT's row, so gamma is 1, which is IKL."

_DKL: dict[str, Named] = {
    "ikl-at-cifar10-wrn-28-10-1m": Named(
        _recipe("cifar10", "1m", batch_size=512, epochs=400, objective=_IKL_CIFAR10),
        f"IKL-AT in DM-AT's frame. {_UNKNOWN} {_BORROWED}",
        Published(0.9075, 0.6354, *DKL_README),
    ),
    "ikl-at-cifar10-wrn-28-10-20m": Named(
        _recipe("cifar10", "20m", batch_size=2048, epochs=2400, objective=_IKL_CIFAR10),
        f"IKL-AT in DM-AT's frame. {_UNKNOWN} {_FILE_NAME} Paper and README print 67.75, "
        "log and RobustBench 67.73.",
        Published(0.9216, 0.6773, *ROBUSTBENCH),
        also=(Published(0.9216, 0.6775, *DKL_TABLE_3),),
    ),
    "ikl-at-cifar100-wrn-28-10-1m": Named(
        _recipe("cifar100", "1m", batch_size=512, epochs=400, objective=_IKL_CIFAR100),
        f"IKL-AT in DM-AT's frame. {_UNKNOWN} {_BORROWED}",
        Published(0.6899, 0.3589, *DKL_README),
    ),
    "ikl-at-cifar100-wrn-28-10-50m": Named(
        _recipe("cifar100", "50m", batch_size=2048, epochs=1600, objective=_IKL_CIFAR100),
        f"IKL-AT in DM-AT's frame. {_UNKNOWN} {_FILE_NAME}",
        Published(0.7385, 0.3918, *DKL_TABLE_2),
    ),
    "gkl-at-cifar10-wrn-28-10-1m": Named(
        _recipe("cifar10", "1m", batch_size=512, epochs=400, objective=_GKL_CIFAR10),
        f"GKL-AT in DM-AT's frame. {_UNKNOWN} {_SAME_ROW}",
        Published(0.9075, 0.6354, *GKL_README),
    ),
    "gkl-at-cifar10-wrn-28-10-20m": Named(
        _recipe("cifar10", "20m", batch_size=2048, epochs=2400, objective=_GKL_CIFAR10),
        f"GKL-AT in DM-AT's frame. {_UNKNOWN} {_SAME_ROW} The log of that row says 67.73.",
        Published(0.9216, 0.6775, *GKL_README),
    ),
    "gkl-at-cifar100-wrn-28-10-1m": Named(
        _recipe("cifar100", "1m", batch_size=512, epochs=400, objective=_GKL_CIFAR100),
        f"GKL-AT in DM-AT's frame. {_UNKNOWN} {_SAME_ROW}",
        Published(0.6899, 0.3589, *GKL_README),
    ),
    "gkl-at-cifar100-wrn-28-10-50m": Named(
        _recipe("cifar100", "50m", batch_size=2048, epochs=1600, objective=_GKL_SMOOTH),
        f"GKL-AT in DM-AT's frame, the one row where GKL-AT differs from IKL-AT. {_UNKNOWN} GKL's settings are "
        "unknown: gamma 0.4 is that of the CIFAR-100 script without generated images.",
        Published(0.7365, 0.3937, *GKL_README),
    ),
}

GENERATED: dict[str, Named] = {**_DM_AT, **_DKL}
