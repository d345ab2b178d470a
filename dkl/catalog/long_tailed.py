"""Long-tailed data: ImageNet-LT with the published rows of IKL-KD and GKL-KD, and CIFAR-100-LT. No torch.

The teachers of ImageNet-LT are the baselines of the same table, each the best epoch on the test list in the
originals, the last one here.
"""

from collections.abc import Iterator

from dkl.architectures import TimmModel
from dkl.catalog.distillation import NETWORKS, alone, entry, gkl_of, ikl_of, optimizer_of
from dkl.catalog.distillation_numbers import reported
from dkl.catalog.entries import DKL_PAPER, DKL_README, GKL_README, NORMALISATION, Named
from dkl.lessons import GKLKD, IKLKD, KD, Lesson
from dkl.objectives import Natural
from dkl.recipes import SGD, Distillation, Train, WarmCosine

# --- ImageNet-LT ------------------------------------------------------------------------------------------

_PAPER_URL = "https://arxiv.org/abs/2305.13948"
_TABLE_5 = (f"{DKL_PAPER}, Table 5", _PAPER_URL)
_TABLE_18 = (f"{DKL_PAPER}, Table 18", _PAPER_URL)
_OLDER_README = ("an earlier README of jiequancui/DKL", DKL_README[1])

_NORMALISATION = NORMALISATION["imagenet"]
_NETWORKS = {
    "resnet18": TimmModel(name="resnet18", normalisation=_NORMALISATION),
    "resnet50": TimmModel(name="resnet50", normalisation=_NORMALISATION),
    "resnext101": TimmModel(name="resnext101_32x4d", normalisation=_NORMALISATION),
}
_OPTIMIZER = SGD(lr=0.05, weight_decay=5e-4, schedule=WarmCosine(warmup=10))


def _baseline(network: str) -> Train:
    return Train(
        dataset="imagenet-lt",
        model=_NETWORKS[network],
        objective=Natural(),
        epochs=90,
        batch_size=128,
        optimizer=_OPTIMIZER,
        averaging=None,
    )


def _distilled(student: str, objective: Lesson) -> Distillation:
    return Distillation(
        dataset="imagenet-lt",
        model=_NETWORKS[student],
        objective=objective,
        epochs=90,
        batch_size=128,
        optimizer=_OPTIMIZER,
    )


def _kd(weight: float) -> KD:
    return KD(label_weight=1.0, weight=weight, temperature=1.0)


def _ikl(ce_weight: float, wmse_weight: float) -> IKLKD:
    return IKLKD(
        wmse_weight=wmse_weight,
        ce_weight=ce_weight,
        temperature=1.0,
        prior="none",
        prior_temperature=100.0,
        warmup=1,
    )


def _gkl(ce_weight: float, wmse_weight: float) -> GKLKD:
    return GKLKD(
        wmse_weight=wmse_weight,
        ce_weight=ce_weight,
        temperature=1.0,
        prior="previous-epoch",
        prior_temperature=1.0,
        gamma=0.3,
        warmup=1,
    )


_KD = "CE + weight * KL, the authors' baseline of distillation."
_IKL = "IKL-KD as in the authors' first scripts, which never switch the class prior on; the paper describes it."
_GKL = "GKL-KD as in the authors' second scripts, with the class prior."
_PARTS = "The original runs in four parts of 32 images, each with batch norms of its own."


def _baselines() -> dict[str, Named]:
    return {
        "natural-imagenet-lt-resnet18": entry(
            _baseline("resnet18"),
            f"ResNet-18 on ImageNet-LT, the baseline of the table. {_PARTS}",
            (
                reported(41.15, _TABLE_5, groups=(63.16, 33.47, 5.88)),
                reported(41.15, DKL_README),
                reported(41.15, GKL_README),
            ),
        ),
        "natural-imagenet-lt-resnet50": entry(
            _baseline("resnet50"),
            f"ResNet-50 on ImageNet-LT, the baseline of the table. {_PARTS}",
            (
                reported(45.47, _TABLE_5, groups=(67.25, 38.56, 8.21)),
                reported(45.476, DKL_README),
                reported(45.476, GKL_README),
            ),
        ),
        "natural-imagenet-lt-resnext101": entry(
            _baseline("resnext101"),
            "ResNeXt-101 32x4d on ImageNet-LT, the teacher of the table, which calls it ResNet-101 and prints "
            f"48.33 where the READMEs print 48.024. {_PARTS}",
            (
                reported(48.33, _TABLE_5, groups=(68.91, 42.32, 11.24)),
                reported(48.024, DKL_README),
                reported(48.024, GKL_README),
            ),
        ),
    }


_X101 = 48.33
_R50 = 45.47


def _from_resnext101() -> dict[str, Named]:
    return {
        "kd-imagenet-lt-resnext101-resnet18": entry(
            _distilled("resnet18", _kd(4.0)),
            f"{_KD} An earlier README printed 43.974.",
            (
                reported(44.32, _TABLE_5, groups=(64.60, 37.88, 9.53), alone=(_X101, 41.15)),
                reported(44.318, DKL_README),
                reported(44.318, GKL_README),
                reported(43.974, _OLDER_README),
            ),
        ),
        "kd-imagenet-lt-resnext101-resnet50": entry(
            _distilled("resnet50", _kd(3.0)),
            _KD,
            (
                reported(48.31, _TABLE_5, groups=(68.83, 42.31, 11.37), alone=(_X101, _R50)),
                reported(48.31, _TABLE_18, alone=(_X101, None)),
                reported(48.31, DKL_README),
                reported(48.31, GKL_README),
            ),
        ),
        "ikl-kd-imagenet-lt-resnext101-resnet18": entry(
            _distilled("resnet18", _ikl(4.0, 4.0)),
            f"{_IKL} An earlier README printed 44.88.",
            (
                reported(45.21, _TABLE_5, groups=(66.60, 38.53, 8.19), alone=(_X101, 41.15)),
                reported(45.208, DKL_README),
                reported(44.88, _OLDER_README),
            ),
        ),
        "ikl-kd-imagenet-lt-resnext101-resnet50": entry(
            _distilled("resnet50", _ikl(3.0, 4.0)),
            f"{_IKL} For this cell Table 5 prints 49.29, Table 18 49.22, the README 49.224.",
            (
                reported(49.29, _TABLE_5, groups=(70.06, 43.47, 10.99), alone=(_X101, _R50)),
                reported(49.22, _TABLE_18, alone=(_X101, None)),
                reported(49.224, DKL_README),
            ),
        ),
        "gkl-kd-imagenet-lt-resnext101-resnet18": entry(
            _distilled("resnet18", _gkl(4.0, 4.0)), _GKL, (reported(45.4, GKL_README),)
        ),
        "gkl-kd-imagenet-lt-resnext101-resnet50": entry(
            _distilled("resnet50", _gkl(3.0, 4.0)), _GKL, (reported(49.4, GKL_README),)
        ),
    }


def _from_themselves() -> dict[str, Named]:
    return {
        "kd-imagenet-lt-resnet18-resnet18": entry(
            _distilled("resnet18", _kd(4.0)),
            f"{_KD} The teacher is the same network, trained alone. The scripts have a leftover with weight 1.",
            (reported(42.732, DKL_README),),
        ),
        "kd-imagenet-lt-resnet50-resnet50": entry(
            _distilled("resnet50", _kd(1.0)),
            f"{_KD} The teacher is the same network, trained alone.",
            (reported(47.04, _TABLE_18, alone=(_R50, None)), reported(47.036, DKL_README)),
        ),
        "ikl-kd-imagenet-lt-resnet18-resnet18": entry(
            _distilled("resnet18", _ikl(1.0, 0.5)), _IKL, (reported(43.062, DKL_README),)
        ),
        "ikl-kd-imagenet-lt-resnet50-resnet50": entry(
            _distilled("resnet50", _ikl(1.0, 1.0)),
            _IKL,
            (reported(47.5, _TABLE_18, alone=(_R50, None)), reported(47.504, DKL_README)),
        ),
        "gkl-kd-imagenet-lt-resnet18-resnet18": entry(
            _distilled("resnet18", _gkl(1.0, 0.5)),
            "GKL-KD with IKL-KD's weights for this pair and the rest of the authors' second scripts, which do not "
            "have it. Not a row of a paper.",
            (),
        ),
        "gkl-kd-imagenet-lt-resnet50-resnet50": entry(
            _distilled("resnet50", _gkl(1.0, 1.0)), f"{_GKL} No number is published.", ()
        ),
    }


# --- CIFAR-100-LT -----------------------------------------------------------------------------------------

_TEACHER, _STUDENT = "resnet32x4", "resnet8x4"
_OURS = "Not a row of a paper: the settings are those of the balanced CIFAR-100."


def _cifar100(factor: int) -> Iterator[tuple[str, Named]]:
    dataset = f"cifar100-lt@{factor}"
    slug = dataset.replace("@", "-")
    for network in (_TEACHER, _STUDENT):
        about = f"{network} alone on CIFAR-100-LT, imbalance {factor}. {_OURS}"
        yield f"natural-{slug}-{network}", Named(alone(dataset, network), about)
    lessons: tuple[Lesson, ...] = (KD(), ikl_of(_TEACHER, _STUDENT), gkl_of(_TEACHER, _STUDENT))
    for lesson in lessons:
        recipe = Distillation(
            dataset=dataset,
            model=NETWORKS[_STUDENT],
            objective=lesson,
            epochs=240,
            batch_size=64,
            optimizer=optimizer_of(_STUDENT),
        )
        method = lesson.kind.upper()
        about = f"{method} on CIFAR-100-LT, imbalance {factor}; its teacher is trained on it, too. {_OURS}"
        yield f"{lesson.kind}-{slug}-{_TEACHER}-{_STUDENT}", Named(recipe, about)


LONG_TAILED: dict[str, Named] = {
    **_baselines(),
    **_from_resnext101(),
    **_from_themselves(),
    **dict(row for factor in (10, 50, 100) for row in _cifar100(factor)),
}
