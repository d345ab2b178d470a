"""Numbers in print about distillation on CIFAR-100 and ImageNet: tables in per cent, as their sources print them.

No torch. Whoever prints a number that another source has already is kept: it says where a table comes from.
"""

from dkl.catalog.entries import DKL_PAPER, DKL_README, GKL_README, PublishedAccuracy

_PAPER_URL = "https://arxiv.org/abs/2305.13948"
_TABLE_1 = (f"{DKL_PAPER}, Table 1", _PAPER_URL)
_TABLE_4 = (f"{DKL_PAPER}, Table 4", _PAPER_URL)
_TABLE_13 = (f"{DKL_PAPER}, Table 13", _PAPER_URL)
_TABLE_14 = (f"{DKL_PAPER}, Table 14", _PAPER_URL)
_OLDER_README = ("an earlier README of jiequancui/DKL", DKL_README[1])
_GENDD = (
    "README of jiequancui/Generative-Distribution-Distillation",
    "https://github.com/jiequancui/Generative-Distribution-Distillation",
)
_MDISTILLER = ("README of megvii-research/mdistiller", "https://github.com/megvii-research/mdistiller")
_REPDISTILLER = ("README of HobbitLong/RepDistiller", "https://github.com/HobbitLong/RepDistiller")
_REVIEWKD = ("README of dvlab-research/ReviewKD", "https://github.com/dvlab-research/ReviewKD")
_TORCHDISTILL = ("Benchmarks of torchdistill", "https://github.com/yoshitomo-matsubara/torchdistill")
_OVERHAUL = ("README of clovaai/overhaul-distillation", "https://github.com/clovaai/overhaul-distillation")
_ATTENTION = ("README of szagoruyko/attention-transfer", "https://github.com/szagoruyko/attention-transfer")


def reported(
    percent: float,
    source: tuple[str, str],
    seconds: float | None = None,
    *,
    alone: tuple[float | None, float | None] = (None, None),
    groups: tuple[float, float, float] | None = None,
) -> PublishedAccuracy:
    """A row as it is printed, in per cent. `alone`: what teacher and student have without each other, where
    the source says it; `groups`: classes with many, a medium number of, and few training images."""
    teacher, student = alone
    many, medium, few = groups or (None, None, None)
    return PublishedAccuracy(
        _fraction(percent),
        *source,
        teacher_accuracy=teacher and _fraction(teacher),
        student_accuracy=student and _fraction(student),
        many_accuracy=many and _fraction(many),
        medium_accuracy=medium and _fraction(medium),
        few_accuracy=few and _fraction(few),
        seconds_per_iteration=seconds,
    )


def _fraction(percent: float) -> float:
    return round(percent / 100, 6)


# --- CIFAR-100 --------------------------------------------------------------------------------------------

CIFAR_PAIRS = (
    ("resnet56", "resnet20"),
    ("resnet110", "resnet32"),
    ("resnet32x4", "resnet8x4"),
    ("wrn-40-2", "wrn-16-2"),
    ("wrn-40-2", "wrn-40-1"),
    ("vgg13", "vgg8"),
    ("resnet32x4", "shufflev1"),
    ("wrn-40-2", "shufflev1"),
    ("vgg13", "mobilenetv2"),
    ("resnet-50", "mobilenetv2"),
    ("resnet32x4", "shufflev2"),
)
"""Teacher and student, in the order of the tables: six of Table 13, five of Table 14."""

_TEACHERS = (72.34, 74.31, 79.42, 75.61, 75.61, 74.64, 79.42, 75.61, 74.64, 79.34, 79.42)
_STUDENTS = (69.06, 71.14, 72.50, 73.26, 71.98, 70.36, 70.50, 70.50, 64.60, 64.60, 71.82)

_IN_THE_PAPER = {
    "kd": (70.66, 73.08, 73.33, 74.92, 73.54, 72.98, 74.07, 74.83, 67.37, 67.35, 74.45),
    "dkd": (71.97, 74.11, 76.32, 76.24, 74.81, 74.68, 76.45, 76.70, 69.71, 70.35, 77.07),
    "ofd": (70.98, 73.23, 74.95, 75.24, 74.33, 73.95, 75.98, 75.85, 69.48, 69.04, 76.82),
    "crd": (71.16, 73.48, 75.51, 75.48, 74.14, 73.94, 75.11, 76.05, 69.73, 69.11, 75.65),
    "reviewkd": (71.89, 73.89, 75.63, 76.12, 75.09, 74.84, 77.45, 77.14, 70.37, 69.89, 77.78),
    "ikl-kd": (71.44, 74.26, 76.59, 76.45, 74.98, 74.98, 76.64, 77.19, 70.40, 70.62, 77.16),
}
_AT_MDISTILLER = {
    "kd": _IN_THE_PAPER["kd"],
    "dkd": (71.97, 74.11, 76.32, 76.23, 74.81, 74.68, 76.45, 76.70, 69.71, 70.35, 77.07),
}
_AT_REPDISTILLER = {
    "kd": _IN_THE_PAPER["kd"],
    "at-kd": (70.55, 72.31, 73.44, 74.08, 72.77, 71.43, 71.73, 73.32, 59.40, 58.58, 72.73),
    "crd": _IN_THE_PAPER["crd"],
}


def on_cifar100(method: str, teacher: str, student: str) -> tuple[PublishedAccuracy, ...]:
    """What is in print for distilling `teacher` into `student` by `method`, the paper's number first."""
    place = CIFAR_PAIRS.index((teacher, student))
    tables = (
        (_IN_THE_PAPER, _paper(place)),
        (_AT_MDISTILLER, _MDISTILLER),
        (_AT_REPDISTILLER, _REPDISTILLER),
    )
    alone = (_TEACHERS[place], _STUDENTS[place])
    return tuple(
        reported(table[method][place], source, alone=alone) for table, source in tables if method in table
    )


def alone_on_cifar100(network: str) -> tuple[PublishedAccuracy, ...]:
    """What is in print for `network` trained without a teacher, once for each table that has it."""
    found = {}
    for place, pair in enumerate(CIFAR_PAIRS):
        for name, accuracies in zip(pair, (_TEACHERS, _STUDENTS), strict=True):
            if name == network:
                found[_paper(place)] = reported(accuracies[place], _paper(place))
    return tuple(found.values())


def _paper(place: int) -> tuple[str, str]:
    return _TABLE_13 if place < 6 else _TABLE_14


# --- ImageNet ---------------------------------------------------------------------------------------------

_R18 = (73.31, 69.75)
_MV1 = (76.16, 68.87)

ON_IMAGENET: dict[str, tuple[PublishedAccuracy, ...]] = {
    "kd-imagenet-resnet34-resnet18": (
        reported(71.03, _TABLE_4, alone=_R18),
        reported(71.03, _TABLE_1),
        reported(71.03, _MDISTILLER),
        reported(71.24, _GENDD),
        reported(71.37, _TORCHDISTILL),
    ),
    "dkd-imagenet-resnet34-resnet18": (
        reported(71.70, _TABLE_4, alone=_R18),
        reported(71.70, DKL_README),
        reported(71.70, GKL_README),
        reported(71.70, _MDISTILLER),
    ),
    "at-kd-imagenet-resnet34-resnet18": (
        reported(70.69, _TABLE_4, alone=_R18),
        reported(70.70, _ATTENTION),
        reported(70.90, _TORCHDISTILL),
    ),
    "ofd-imagenet-resnet34-resnet18": (reported(70.81, _TABLE_4, alone=_R18),),
    "crd-imagenet-resnet34-resnet18": (reported(71.17, _TABLE_4, alone=_R18), reported(70.93, _TORCHDISTILL)),
    "reviewkd-imagenet-resnet34-resnet18": (
        reported(71.61, _TABLE_4, 0.319, alone=_R18),
        reported(71.61, DKL_README, 0.319),
        reported(71.61, GKL_README, 0.319),
        reported(71.61, _REVIEWKD),
        reported(71.64, _TORCHDISTILL),
    ),
    "ikl-kd-imagenet-resnet34-resnet18": (
        reported(71.91, _TABLE_4, 0.197, alone=_R18),
        reported(71.91, _TABLE_1),
        reported(71.91, DKL_README, 0.197),
        reported(71.91, _GENDD),
    ),
    "ikl-kd-imagenet-resnet34-resnet18-no-prior": (reported(71.80, _TABLE_1),),
    "gkl-kd-imagenet-resnet34-resnet18": (reported(71.91, GKL_README, 0.197),),
    "kd-imagenet-resnet50-mobilenetv1": (
        reported(70.50, _TABLE_4, alone=_MV1),
        reported(70.50, _MDISTILLER),
        reported(71.44, _GENDD),
    ),
    "dkd-imagenet-resnet50-mobilenetv1": (
        reported(72.05, _TABLE_4, alone=_MV1),
        reported(72.05, DKL_README),
        reported(72.05, GKL_README),
        reported(72.05, _MDISTILLER),
    ),
    "at-kd-imagenet-resnet50-mobilenetv1": (reported(69.56, _TABLE_4, alone=_MV1),),
    "ofd-imagenet-resnet50-mobilenetv1": (reported(71.25, _TABLE_4, alone=_MV1), reported(71.25, _OVERHAUL)),
    "crd-imagenet-resnet50-mobilenetv1": (reported(71.37, _TABLE_4, alone=_MV1),),
    "reviewkd-imagenet-resnet50-mobilenetv1": (
        reported(72.56, _TABLE_4, 0.526, alone=_MV1),
        reported(72.56, DKL_README, 0.526),
        reported(72.56, GKL_README, 0.526),
        reported(72.56, _REVIEWKD),
    ),
    "ikl-kd-imagenet-resnet50-mobilenetv1": (
        reported(72.84, _TABLE_4, 0.252, alone=_MV1),
        reported(72.84, DKL_README, 0.252),
        reported(72.64, _OLDER_README, 0.252),
        reported(73.19, _GENDD),
    ),
    "gkl-kd-imagenet-resnet50-mobilenetv1": (reported(72.92, GKL_README, 0.252),),
}
