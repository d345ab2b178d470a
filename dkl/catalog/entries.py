"""What an entry of the catalogue is, and what its families share: threat models, networks, sources. No torch."""

from dataclasses import dataclass
from typing import Literal

from dkl.architectures import WideResNet
from dkl.documents import Normalisation, ThreatModel
from dkl.protocols import AnyProtocol
from dkl.recipes import Distillation, Train

Needs = Literal["model", "teacher"] | None


@dataclass(frozen=True)
class Published:
    """What somebody reports for this recipe, as fractions; robust accuracy is under AutoAttack standard."""

    clean_accuracy: float
    robust_accuracy: float
    source: str
    url: str
    eps: float | None = None
    """Radius at which it was judged, where that is not the one it was trained against."""


@dataclass(frozen=True)
class PublishedAccuracy:
    """What somebody reports for this recipe where nothing is attacked: top-1 accuracies, as fractions."""

    accuracy: float
    source: str
    url: str
    teacher_accuracy: float | None = None
    student_accuracy: float | None = None
    """The student's own, trained without a teacher."""
    many_accuracy: float | None = None
    medium_accuracy: float | None = None
    few_accuracy: float | None = None
    """Means over the classes with more than 100, 20 to 100, and fewer than 20 training images."""
    seconds_per_iteration: float | None = None


@dataclass(frozen=True)
class Named:
    """A catalogue entry. What judges still needs its model, what distils its teacher: submit it with model.job=ID
    or teacher.job=ID."""

    recipe: Train | Distillation | AnyProtocol
    about: str
    published: Published | PublishedAccuracy | None = None
    """The paper's number, or RobustBench's."""
    also: tuple[Published | PublishedAccuracy, ...] = ()
    """Other numbers in print for the same recipe, and the same ones elsewhere."""

    @property
    def needs(self) -> Needs:
        """The model source that has to be given with it; None where it is complete."""
        match self.recipe:
            case Distillation():
                return "teacher"
            case Train():
                return None
            case _:
                return "model"


LINF_8 = ThreatModel(norm="Linf", eps=8 / 255)
L2_128 = ThreatModel(norm="L2", eps=128 / 255)
DIGITS_LINF = ThreatModel(norm="Linf", eps=0.2)

WRN_34_10 = WideResNet(depth=34, width=10)

NORMALISATION = {
    "cifar10": Normalisation(mean=(0.4914, 0.4822, 0.4465), std=(0.2471, 0.2435, 0.2616)),
    "cifar100": Normalisation(mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762)),
    "imagenet": Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
}
"""What Rice et al., AT-AWP and DM-AT do to pixels of CIFAR first; all others there take them as they are. What
everybody does to those of ImageNet."""

# (source, url), the last two fields of Published
ROBUSTBENCH = ("RobustBench", "https://robustbench.github.io")
DKL_PAPER = "Cui et al., Decoupled Kullback-Leibler Divergence Loss, NeurIPS 2024"
DKL_TABLE_2 = (f"{DKL_PAPER}, Table 2", "https://arxiv.org/abs/2305.13948")
DKL_TABLE_3 = (f"{DKL_PAPER}, Table 3", "https://arxiv.org/abs/2305.13948")
DKL_README = ("README of jiequancui/DKL, DKLv1", "https://github.com/jiequancui/DKL")
GKL_README = (
    "README of jiequancui/DKL, DKLv2 (the code of arXiv:2503.08038)",
    "https://github.com/jiequancui/DKL",
)
DAJAT = ("Addepalli et al., NeurIPS 2022, README of val-iisc/DAJAT", "https://github.com/val-iisc/DAJAT")
