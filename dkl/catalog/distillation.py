"""Distillation on CIFAR-100 (eleven pairs) and ImageNet (two), by eight objectives; and its networks alone.

No torch. IKL-KD and GKL-KD are the authors' configurations, the others those of mdistiller, in whose trainer all
of them run. The authors' code calls `ce_weight` alpha and `wmse_weight` beta; the paper has them the other way
round.
"""

from collections.abc import Callable
from typing import NamedTuple

from dkl.architectures import (
    VGG,
    MobileNetV2,
    Model,
    ResNet,
    ShuffleNetV1,
    ShuffleNetV2,
    ThinResNet,
    TimmModel,
    WideResNet,
)
from dkl.catalog.distillation_numbers import CIFAR_PAIRS, ON_IMAGENET, alone_on_cifar100, on_cifar100
from dkl.catalog.entries import NORMALISATION, Named, PublishedAccuracy
from dkl.documents import Normalisation
from dkl.lessons import AT, CRD, DKD, GKLKD, IKLKD, KD, OFD, Lesson, ReviewKD
from dkl.objectives import Natural
from dkl.recipes import SGD, Distillation, Steps, Train

_CIFAR = Normalisation(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761))
"""Of RepDistiller, and of everybody since; not quite what adversarial training uses."""

NETWORKS: dict[str, Model] = {
    "resnet20": ThinResNet(depth=20, normalisation=_CIFAR),
    "resnet32": ThinResNet(depth=32, normalisation=_CIFAR),
    "resnet56": ThinResNet(depth=56, normalisation=_CIFAR),
    "resnet110": ThinResNet(depth=110, normalisation=_CIFAR),
    "resnet8x4": ThinResNet(depth=8, width=4, normalisation=_CIFAR),
    "resnet32x4": ThinResNet(depth=32, width=4, normalisation=_CIFAR),
    "wrn-16-2": WideResNet(depth=16, width=2, normalisation=_CIFAR),
    "wrn-40-1": WideResNet(depth=40, width=1, normalisation=_CIFAR),
    "wrn-40-2": WideResNet(depth=40, width=2, normalisation=_CIFAR),
    "vgg8": VGG(depth=8, normalisation=_CIFAR),
    "vgg13": VGG(depth=13, normalisation=_CIFAR),
    "shufflev1": ShuffleNetV1(normalisation=_CIFAR),
    "shufflev2": ShuffleNetV2(normalisation=_CIFAR),
    "mobilenetv2": MobileNetV2(normalisation=_CIFAR),
    "resnet-50": ResNet(depth=50, normalisation=_CIFAR),
}
"""Of CIFAR-100, in the order in which papers mention them."""

_SMALL_STEPS = {"shufflev1", "shufflev2", "mobilenetv2"}
"""Networks that everybody trains with a learning rate of 0.01 instead of 0.05."""


def optimizer_of(network: str) -> SGD:
    """How `network` is trained on CIFAR-100, with a teacher or alone."""
    lr = 0.01 if network in _SMALL_STEPS else 0.05
    return SGD(lr=lr, weight_decay=5e-4, schedule=Steps(epochs=(151, 181, 211)))


# --- the objectives ---------------------------------------------------------------------------------------


class _Set(NamedTuple):
    """What was set for one pair, in the order of the authors' configurations, and by our names."""

    ikl: tuple[float, float]
    """ce_weight (their alpha), wmse_weight (their beta)."""
    gkl: tuple[float, float, float, bool]
    """The same two, gamma, and whether the class prior weighs (their GI)."""
    non_target_weight: float
    reviewkd: float | None
    """None where its authors' script does not have the pair."""


_SETTINGS: dict[tuple[str, str], _Set] = {
    ("resnet56", "resnet20"): _Set((1, 4), (1, 4, 0.2, True), 2, 0.6),
    ("resnet110", "resnet32"): _Set((1, 12), (1, 4, 0.1, False), 2, 1),
    ("resnet32x4", "resnet8x4"): _Set((1, 8), (1, 16, 0.05, True), 8, 5),
    ("wrn-40-2", "wrn-16-2"): _Set((3, 12), (3, 20, 0.3, False), 6, 5),
    ("wrn-40-2", "wrn-40-1"): _Set((1, 8), (1, 12, 0.3, False), 6, 5),
    ("vgg13", "vgg8"): _Set((1, 12), (1, 8, 0.2, True), 6, None),
    ("resnet32x4", "shufflev1"): _Set((1, 8), (1, 8, 0.0, True), 8, 5),
    ("wrn-40-2", "shufflev1"): _Set((1, 4), (1, 8, 0.0, False), 8, 5),
    ("vgg13", "mobilenetv2"): _Set((4, 12), (4, 12, 0.1, True), 6, None),
    ("resnet-50", "mobilenetv2"): _Set((1, 12), (1, 8, 0.05, True), 8, None),
    ("resnet32x4", "shufflev2"): _Set((3, 12), (3, 12, 0.1, True), 8, 8),
}


def ikl_of(teacher: str, student: str) -> IKLKD:
    """The first code's configuration of a CIFAR-100 pair."""
    ce_weight, wmse_weight = _SETTINGS[teacher, student].ikl
    return IKLKD(
        wmse_weight=wmse_weight,
        ce_weight=ce_weight,
        temperature=4.0,
        prior="none",
        prior_temperature=100.0,
        warmup=20,
    )


def gkl_of(teacher: str, student: str) -> GKLKD:
    """The second code's configuration of a CIFAR-100 pair."""
    ce_weight, wmse_weight, gamma, has_prior = _SETTINGS[teacher, student].gkl
    return GKLKD(
        wmse_weight=wmse_weight,
        ce_weight=ce_weight,
        temperature=4.0,
        prior="previous-epoch" if has_prior else "none",
        prior_temperature=4.0,
        gamma=gamma,
        warmup=20,
    )


def _dkd_of(teacher: str, student: str) -> DKD:
    return DKD(non_target_weight=_SETTINGS[teacher, student].non_target_weight, temperature=4.0, warmup=20)


def _reviewkd_of(teacher: str, student: str) -> ReviewKD:
    weight = _SETTINGS[teacher, student].reviewkd
    return ReviewKD(weight=5.0 if weight is None else weight, warmup=20)


_LESSONS: dict[str, Callable[[str, str], Lesson]] = {
    "kd": lambda teacher, student: KD(),
    "dkd": _dkd_of,
    "at-kd": lambda teacher, student: AT(),
    "ofd": lambda teacher, student: OFD(),
    "crd": lambda teacher, student: CRD(),
    "reviewkd": _reviewkd_of,
    "ikl-kd": ikl_of,
    "gkl-kd": gkl_of,
}

# --- CIFAR-100 --------------------------------------------------------------------------------------------

_BEST_EPOCH = "The code behind the numbers logs the best epoch on the test set; here it is the last."
_ABOUT = {
    "kd": f"KD with the weights of RepDistiller: 0.1 for the label, 0.9 for the teacher. {_BEST_EPOCH}",
    "dkd": f"DKD as in mdistiller, the code of its authors. {_BEST_EPOCH}",
    "at-kd": "AT as in mdistiller. The number is a re-run by RepDistiller's authors; the IKL-KD paper has none.",
    "ofd": (
        "OFD as in mdistiller, which leaves the teacher in train mode where the numbers may come from; here it is "
        f"in eval mode. {_BEST_EPOCH}"
    ),
    "crd": f"CRD as in RepDistiller, the code of its authors. {_BEST_EPOCH}",
    "reviewkd": (
        "ReviewKD in the frame of all others. Its authors take batches of 128 with Nesterov's momentum at 0.1, or "
        f"0.02 for Shuffle- and MobileNets, and begin the warm-up at 0. {_BEST_EPOCH}"
    ),
    "ikl-kd": (
        "IKL-KD as configured in the authors' first code, which leaves the class prior off on CIFAR-100, and its "
        f"temperature at 100, though the paper describes it. {_BEST_EPOCH}"
    ),
    "gkl-kd": (
        "GKL-KD as configured in the authors' second code. No README has a number for CIFAR-100, and the tables "
        "of arXiv:2503.08038 were not available to us."
    ),
}

_REMARKS: dict[tuple[str, str, str], str] = {
    ("dkd", "wrn-40-2", "wrn-16-2"): "The IKL-KD paper prints 76.24, mdistiller 76.23.",
    ("dkd", "resnet32x4", "shufflev2"): "mdistiller's README calls this student MobileNet-V2 by mistake.",
    ("kd", "resnet32x4", "shufflev2"): "mdistiller's README calls this student MobileNet-V2 by mistake.",
    ("gkl-kd", "resnet32x4", "shufflev1"): "With gamma 0 all classes weigh alike, whatever the prior says.",
    ("gkl-kd", "wrn-40-2", "shufflev1"): "With gamma 0 all classes weigh alike.",
    **{
        ("reviewkd", *pair): "Their script does not have this pair; the weight 5 is that of most others."
        for pair, settings in _SETTINGS.items()
        if settings.reviewkd is None
    },
}


def _on_cifar100(method: str, teacher: str, student: str) -> Named:
    recipe = Distillation(
        dataset="cifar100",
        model=NETWORKS[student],
        objective=_LESSONS[method](teacher, student),
        epochs=240,
        batch_size=64,
        optimizer=optimizer_of(student),
    )
    remark = _REMARKS.get((method, teacher, student))
    numbers = () if method == "gkl-kd" else on_cifar100(method, teacher, student)
    return entry(recipe, " ".join(filter(None, [_ABOUT[method], remark])), numbers)


def entry(recipe: Train | Distillation, about: str, numbers: tuple[PublishedAccuracy, ...]) -> Named:
    """The first of `numbers` is the published one, if there is one."""
    return Named(recipe, about, numbers[0] if numbers else None, also=numbers[1:])


def alone(dataset: str, network: str) -> Train:
    """A network of the pairs trained without a teacher, on CIFAR-100 or a long-tailed part of it."""
    return Train(
        dataset=dataset,
        model=NETWORKS[network],
        objective=Natural(),
        epochs=240,
        batch_size=64,
        optimizer=optimizer_of(network),
        averaging=None,
    )


_ALONE = "alone on clean CIFAR-100, as RepDistiller trains teachers and students."

_CIFAR100: dict[str, Named] = {
    **{
        f"natural-cifar100-{network}": entry(
            alone("cifar100", network),
            f"{network} {_ALONE} {_BEST_EPOCH}",
            alone_on_cifar100(network),
        )
        for network in NETWORKS
    },
    **{
        f"{method}-cifar100-{teacher}-{student}": _on_cifar100(method, teacher, student)
        for teacher, student in CIFAR_PAIRS
        for method in _LESSONS
    },
}

# --- ImageNet ---------------------------------------------------------------------------------------------

_STUDENTS = {
    "resnet34-resnet18": TimmModel(name="resnet18", normalisation=NORMALISATION["imagenet"]),
    "resnet50-mobilenetv1": TimmModel(name="mobilenetv1_100", normalisation=NORMALISATION["imagenet"]),
}


def _on_imagenet(
    pair: str, objective: Lesson, about: str, *, batch_size: int = 512, lr: float = 0.2, variant: str = ""
) -> dict[str, Named]:
    recipe = Distillation(
        dataset="folder:imagenet",
        model=_STUDENTS[pair],
        objective=objective,
        epochs=100,
        batch_size=batch_size,
        optimizer=SGD(lr=lr, weight_decay=1e-4, schedule=Steps(epochs=(31, 61, 91))),
    )
    name = f"{objective.kind}-imagenet-{pair}{variant}"
    return {name: entry(recipe, f"{about} {_FROM[pair]}", ON_IMAGENET[name])}


_FROM = {
    "resnet34-resnet18": "The teacher is torchvision's: teacher.timm=resnet34.tv_in1k.",
    "resnet50-mobilenetv1": (
        "The teacher is torchvision's: teacher.timm=resnet50.tv_in1k. timm's MobileNetV1 has ReLU6 where "
        "mdistiller's has ReLU."
    ),
}


def _ikl(ce_weight: float, wmse_weight: float, *, prior: bool = True) -> IKLKD:
    return IKLKD(
        wmse_weight=wmse_weight,
        ce_weight=ce_weight,
        temperature=1.0,
        prior="previous-epoch" if prior else "none",
        prior_temperature=1.0,
        warmup=1,
    )


def _gkl(ce_weight: float, wmse_weight: float, gamma: float) -> GKLKD:
    return GKLKD(
        wmse_weight=wmse_weight,
        ce_weight=ce_weight,
        temperature=1.0,
        prior="previous-epoch",
        prior_temperature=1.0,
        gamma=gamma,
        warmup=5,
    )


_KD_1 = KD(label_weight=0.5, weight=0.5, temperature=1.0)
_MDISTILLER = "as configured in mdistiller."
_OFD_DRIFTS = "mdistiller leaves the teacher in train mode; here it is in eval mode."
_OWN_BATCH = "Batch size and learning rate are mdistiller's; the IKL-KD paper says 512 of all methods."
_GENDD = "A later README of the same author (GenDD) prints"

_R18 = "resnet34-resnet18"
_MV1 = "resnet50-mobilenetv1"

_IMAGENET: dict[str, Named] = {
    **_on_imagenet(
        _R18,
        _KD_1,
        f"KD {_MDISTILLER} The paper's ablation says 71.03 of KL, too, and of DKL, which has its gradients. "
        f"{_GENDD} 71.24.",
    ),
    **_on_imagenet(_R18, DKD(non_target_weight=0.5, temperature=1.0, warmup=1), f"DKD {_MDISTILLER}"),
    **_on_imagenet(_R18, AT(), f"AT {_MDISTILLER} The README of its authors has an error of 29.3."),
    **_on_imagenet(
        _R18,
        OFD(weight=1e-4),
        f"OFD. Nobody publishes a configuration; this is mdistiller's for MobileNetV1. {_OFD_DRIFTS}",
        batch_size=128,
        lr=0.05,
    ),
    **_on_imagenet(_R18, CRD(), f"CRD {_MDISTILLER} {_OWN_BATCH}", batch_size=256, lr=0.1),
    **_on_imagenet(
        _R18,
        ReviewKD(weight=1.0, before_activation=True, warmup=1),
        f"ReviewKD {_MDISTILLER} The IKL-KD authors' copy of it takes 512 images and 0.2.",
        batch_size=256,
        lr=0.1,
    ),
    **_on_imagenet(_R18, _ikl(1.0, 0.5), "IKL-KD as configured in the authors' first code."),
    **_on_imagenet(
        _R18,
        _ikl(1.0, 0.5, prior=False),
        "The paper's ablation: the wMSE reaches the student, but its weights are the teacher's word on each "
        "image. The pair is not named there; it follows from the numbers.",
        variant="-no-prior",
    ),
    **_on_imagenet(
        _R18,
        _gkl(1.0, 0.5, gamma=0.6),
        "GKL-KD as configured in the authors' second code. Accuracy and seconds are IKL-KD's, digit by digit.",
    ),
    **_on_imagenet(_MV1, _KD_1, f"KD {_MDISTILLER} {_GENDD} 71.44."),
    **_on_imagenet(_MV1, DKD(non_target_weight=2.0, temperature=1.0, warmup=1), f"DKD {_MDISTILLER}"),
    **_on_imagenet(
        _MV1,
        AT(),
        f"AT {_MDISTILLER} There each stage of MobileNet meets a teacher's of twice the side, by a slip; here "
        "stages are paired from the last one back.",
    ),
    **_on_imagenet(_MV1, OFD(weight=1e-4), f"OFD {_MDISTILLER} {_OFD_DRIFTS}", batch_size=128, lr=0.05),
    **_on_imagenet(_MV1, CRD(), f"CRD {_MDISTILLER} {_OWN_BATCH}", batch_size=256, lr=0.1),
    **_on_imagenet(
        _MV1,
        ReviewKD(weight=8.0, before_activation=True, warmup=1),
        f"ReviewKD {_MDISTILLER} The IKL-KD authors' copy of it takes 512 images and 0.2.",
        batch_size=256,
        lr=0.1,
    ),
    **_on_imagenet(_MV1, _ikl(4.0, 1.0), f"IKL-KD as configured in the authors' first code. {_GENDD} 73.19."),
    **_on_imagenet(
        _MV1,
        _gkl(4.0, 1.0, gamma=0.5),
        "GKL-KD as configured in the authors' second code. The seconds are those that the first README has for "
        "IKL-KD.",
    ),
}

DISTILLATION: dict[str, Named] = {**_CIFAR100, **_IMAGENET}
