"""What an evaluation asks of images and model: which images, whether it can be done, how the suite adapts."""

import numpy as np
from numpy.typing import NDArray

from dkl.datasets import Arrays
from dkl.fit import require_fit
from dkl.policies import planned
from dkl.protocols import Evaluate
from dkl.suites import Square, Suite, TargetedAPGD, TargetedFAB, require_targets
from dkl.weights import LoadedModel


def choose(recipe: Evaluate, there: int) -> NDArray[np.int64]:
    """The positions of the images to judge among the `there` test images, ascending."""
    wanted = there if recipe.images is None else recipe.images
    if wanted > there:
        raise ValueError(f"{recipe.dataset} has {there} test images, found images={wanted}; ask for fewer")
    if recipe.sample == "first":
        return np.arange(wanted)
    return np.sort(np.random.default_rng(recipe.seed).choice(there, wanted, replace=False))


def require_feasible(recipe: Evaluate, loaded: LoadedModel, arrays: Arrays) -> None:
    """ValueError where the recipe's attacks cannot run on these images and this model."""
    require_fit(recipe.dataset, loaded, arrays)
    if loaded.classes < 2:
        raise ValueError("a model with one class cannot be fooled; robust accuracy needs at least 2 classes")
    if not isinstance(recipe.suite, str):  # the published versions adapt
        require_targets(recipe.suite, loaded.classes)
    _, height, width, _ = arrays.images.shape
    has_square = any(isinstance(attack, Square) for attack in planned(recipe))
    if has_square and recipe.threat.norm != "Linf" and min(height, width) < 5:
        raise ValueError(
            f"square under {recipe.threat.norm} needs images of at least 5 x 5 pixels, found {height} x {width}; "
            "leave it out of the suite"
        )
    if recipe.engine == "pyautoattack" and loaded.classes < 4:
        for attack in recipe.attacks():
            if attack.kind in ("apgd-dlr", "apgd-t"):
                raise ValueError(
                    f"pyautoattack's {attack.kind} is not possible with {loaded.classes} classes; "
                    "use the engine dkl, which adapts it, or a suite of apgd-ce, fab and square"
                )


def adaptations(attacks: Suite, classes: int) -> list[str]:
    """How these attacks differ from AutoAttack's on a model that tells `classes` classes apart, in sentences."""
    notes = []
    targeted = [a for a in attacks if isinstance(a, TargetedAPGD | TargetedFAB) and a.targets > classes - 1]
    if fewer := dict.fromkeys(attack.kind for attack in targeted):
        wrong = f"all {classes - 1} wrong ones" if classes > 2 else "the wrong one"
        notes.append(f"with {classes} classes {' and '.join(fewer)} aim at {wrong}")
    dlr = dict.fromkeys(a.kind for a in attacks if isinstance(a, TargetedAPGD) or a.kind == "apgd-dlr")
    if dlr and classes < 4:
        notes.append(
            f"the DLR loss of {' and '.join(dlr)} is adapted to {classes} classes: it needs the logits of "
            "more to be invariant under scaling"
        )
    return notes
