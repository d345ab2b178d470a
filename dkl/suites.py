"""The attacks of an evaluation and their suites. An attack holds only the effort spent. No torch here."""

from typing import Annotated, Literal

from pydantic import Field

from dkl.documents import Count, Document, Norm

AUTOATTACK_TARGETS = 9
"""AutoAttack's number of classes to aim at. It is also what is meant where nothing is said, so where a model tells
fewer than 10 classes apart it stands for all the wrong ones; any other number has to fit."""

Restarts = Annotated[int, Field(ge=1, le=256, strict=True)]
Targets = Annotated[int, Field(ge=1, le=256, strict=True)]


class APGD(Document):
    """Auto-PGD (Croce and Hein, arXiv:2003.01690)."""

    kind: Literal["apgd-ce", "apgd-dlr"]
    steps: Count = 100
    restarts: Restarts = 1
    eot: Count = 1
    """Gradients averaged per step, for randomised models."""
    large_eps: bool = False
    """Shrink the radius 3 eps, 2 eps, eps on the way (arXiv:2103.01208), as AutoAttack does for L1."""


class TargetedAPGD(Document):
    """Auto-PGD on the targeted DLR loss, one run per target class."""

    kind: Literal["apgd-t"] = "apgd-t"
    steps: Count = 100
    restarts: Restarts = 1
    targets: Targets = AUTOATTACK_TARGETS
    """The most likely wrong classes. 9 means all of them where there are fewer; any other number has to fit."""
    large_eps: bool = False


class FAB(Document):
    """Fast adaptive boundary attack (Croce and Hein, arXiv:1907.02044)."""

    kind: Literal["fab"] = "fab"
    steps: Count = 100
    restarts: Restarts = 5


class TargetedFAB(Document):
    """FAB towards one target class at a time."""

    kind: Literal["fab-t"] = "fab-t"
    steps: Count = 100
    targets: Targets = AUTOATTACK_TARGETS
    """The most likely wrong classes. 9 means all of them where there are fewer; any other number has to fit."""


class Square(Document):
    """Square attack: random search without gradients (Andriushchenko et al., arXiv:1912.00049)."""

    kind: Literal["square"] = "square"
    queries: Count = 5000
    restarts: Restarts = 1


Attack = Annotated[APGD | TargetedAPGD | FAB | TargetedFAB | Square, Field(discriminator="kind")]
Suite = tuple[APGD | TargetedAPGD | FAB | TargetedFAB | Square, ...]
Version = Literal["standard", "plus", "rand"]

_STANDARD: Suite = (APGD(kind="apgd-ce"), TargetedAPGD(), TargetedFAB(), Square())
_STANDARD_L1: Suite = (
    APGD(kind="apgd-ce", restarts=5, large_eps=True),
    TargetedAPGD(targets=5, large_eps=True),
    TargetedFAB(),
    Square(),
)
_PLUS: Suite = (
    APGD(kind="apgd-ce", restarts=5),
    APGD(kind="apgd-dlr", restarts=5),
    TargetedAPGD(),
    TargetedFAB(),
    FAB(),
    Square(),
)
_RAND: Suite = (APGD(kind="apgd-ce", eot=20), APGD(kind="apgd-dlr", eot=20))

AUTOATTACK: dict[Version, dict[Norm, Suite]] = {
    "standard": {"Linf": _STANDARD, "L2": _STANDARD, "L1": _STANDARD_L1},
    "plus": {"Linf": _PLUS, "L2": _PLUS, "L1": _PLUS},
    "rand": {"Linf": _RAND, "L2": _RAND, "L1": _RAND},
}
"""The attacks of each AutoAttack version and norm, the cheapest first: the worst case over all of them does not
depend on their order, but an image that one has broken costs the next ones nothing."""

_SCREEN: Suite = (APGD(kind="apgd-ce", steps=20), TargetedAPGD(steps=20))
_SCREEN_L1: Suite = (APGD(kind="apgd-ce", steps=20, large_eps=True), TargetedAPGD(steps=20, large_eps=True))

SCREEN: dict[Norm, Suite] = {"Linf": _SCREEN, "L2": _SCREEN, "L1": _SCREEN_L1}
"""The cheap search of the policies audited and screen. All nine targets, few steps: on adversarially trained
models the targets decide which images fall, the number of steps hardly does."""


def require_targets(suite: Suite, classes: int) -> None:
    """Raise ValueError if an attack of one's own suite asks for more wrong classes than `classes` classes have."""
    for attack in suite:
        if isinstance(attack, TargetedAPGD | TargetedFAB) and attack.targets not in {
            AUTOATTACK_TARGETS,
            *range(1, classes),
        }:
            raise ValueError(
                f"{attack.kind} asks for {attack.targets} target classes, with {classes} classes there are "
                f"{classes - 1} wrong ones; ask for at most {classes - 1}"
            )
