"""Budgets of studies: what is changed of published recipes so that they all train at the same cost. No torch.

Network, images, epochs, batch size, optimiser, average and threat are the same for all methods. What makes a
method is left alone: its objective with its weights, its attack, its views, weight perturbation and learnt
strategies. What is stated in epochs or in updates is cut down in proportion.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dkl.architectures import Model, PreActResNet, WideResNet
from dkl.objectives import LASAT, LASTRADES, LBGAT
from dkl.recipes import SGD, Augmentation, Averaging, EpochEMA, Train, WarmCosine


@dataclass(frozen=True)
class Cut:
    """What all methods have in common at a reduced budget."""

    images: int | None
    """Training images; None: all."""
    model: Model
    epochs: int
    batch_size: int
    optimizer: SGD
    averaging: Averaging
    most_steps: int | None = None
    """Attacks of more steps take so many, longer ones in proportion; None: as published."""
    companion: Model | None = None
    """The network that learns beside the model, LBGAT's teacher or the strategy of LAS; None: as published."""
    strategy_every: int | None = None
    """Of LAS: the strategy learns in one of so many updates, faster; None: as often per training as published,
    where that can be done, and at most once per update."""

    def overrides(self, recipe: Train) -> dict[str, Any]:
        """Of `recipe`, an adversarial training as published."""
        return {
            "dataset": "cifar10",
            "images": self.images,
            "augmentation": Augmentation().model_dump(mode="json"),
            "model": self.model.model_dump(mode="json"),
            "threat": {"norm": "Linf", "eps": "8/255"},
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "optimizer": self.optimizer.model_dump(mode="json"),
            "averaging": self.averaging.model_dump(mode="json"),
            "validation": None,
            "select": "last",
            **self._attack(recipe),
            **self._awp(recipe),
            **self._objective(recipe),
        }

    def _attack(self, recipe: Train) -> dict[str, Any]:
        """Fewer and longer steps, which come as far."""
        attack = recipe.attack
        if attack is None or self.most_steps is None or attack.steps <= self.most_steps:
            return {}
        longer = attack.relative_step_size * attack.steps / self.most_steps
        return {"attack.steps": self.most_steps, "attack.relative_step_size": round(longer, 4)}

    def _awp(self, recipe: Train) -> dict[str, Any]:
        """As large a share of the epochs without it."""
        if recipe.awp is None:
            return {}
        return {"awp.first_epoch": 1 + round((recipe.awp.first_epoch - 1) * self.epochs / recipe.epochs)}

    def _objective(self, recipe: Train) -> dict[str, Any]:
        match recipe.objective:
            case LBGAT() if self.companion is not None:
                return {"objective.teacher": self.companion.model_dump(mode="json")}
            case LASAT() | LASTRADES() as learnt:
                return self._strategy(recipe, learnt)
            case _:
                return {}

    def _strategy(self, recipe: Train, learnt: LASAT | LASTRADES) -> dict[str, Any]:
        """Its choices are cut like the attack. It learns as often per training as published, where that can be
        done, and at most once per update; or, where updates are few, at the pace of the recipes on digits, which
        takes hundreds of updates for tens of thousands."""
        strategy, changed = learnt.strategy, dict[str, Any]()
        if self.companion is not None:
            changed["network"] = self.companion.model_dump(mode="json")
        assert recipe.attack is not None
        if self.most_steps is not None and recipe.attack.steps > self.most_steps:
            share = self.most_steps / recipe.attack.steps
            changed["steps"] = sorted({max(1, round(share * steps)) for steps in strategy.steps})
            changed["step_sizes"] = [size / share for size in strategy.step_sizes]
        if self.strategy_every is None:
            changed["every"] = max(1, round(strategy.every * self.epochs / recipe.epochs))
        else:
            changed |= {"every": self.strategy_every, "lr": 1e-3, "reward.normalisation": "batch"}
        return {f"objective.strategy.{field}": value for field, value in changed.items()}


@dataclass(frozen=True)
class Budget:
    """How much a study may cost."""

    name: str
    about: str
    """What is trained and judged, in sentences."""
    can_say: str
    cannot_say: str
    cut: Cut | None
    """None: every recipe as it was published."""
    judge: Mapping[str, Any]
    """Changes to AutoAttack standard on all test images."""

    @property
    def dataset(self) -> str | None:
        """None: the table's own."""
        return None if self.cut is None else "cifar10"

    def overrides(self, recipe: Train) -> dict[str, Any]:
        """What the budget changes of `recipe`, an adversarial training as published."""
        return {} if self.cut is None else self.cut.overrides(recipe)

    def why_not(self, recipe: Train) -> str | None:
        """Why the budget has no way to train `recipe`, as a sentence; None where it has."""
        if self.cut is not None and recipe.generated is not None:
            return "It is about millions of generated images, which this budget does without."
        return None


_SMALL_WRN = WideResNet(depth=10, width=1)
_SAME = (
    "All methods have the same network, images, updates, optimiser, average and threat; objectives, attacks, "
    "views and weight perturbations are those of the published recipes"
)

BUDGETS: dict[str, Budget] = {
    budget.name: budget
    for budget in (
        Budget(
            "smoke",
            about="64 training images, one epoch, 8 test images; about a minute on two CPU cores.",
            can_say="Whether every method trains and is judged on this installation.",
            cannot_say="Anything about any method: the accuracies are noise.",
            cut=Cut(
                images=64,
                model=_SMALL_WRN,
                epochs=1,
                batch_size=32,
                optimizer=SGD(lr=0.02),
                averaging=EpochEMA(decay=0.0),
                most_steps=2,
                companion=_SMALL_WRN,
                strategy_every=2,
            ),
            judge={"images": 8, "policy": "audited"},
        ),
        Budget(
            "tiny",
            about=(
                "WRN-10-1, the first 2,000 training images of CIFAR-10, 8 epochs of batches of 64, at most five "
                "attack steps, where they are learnt at most eight: within an hour on two CPU cores. "
                f"{_SAME}, with ten attack steps cut to five that come as far, and learnt ones likewise. "
                "AutoAttack standard, audited, on the first 300 test images; one seed."
            ),
            can_say=(
                "Whether each method trains as it should, and large differences: two rows whose intervals are "
                "apart differ on these images at this budget. Neighbours are within each other's intervals, and "
                "another seed moves a row by a point or two."
            ),
            cannot_say=(
                "How good a method is. So little data, time and capacity favour what learns fast: what pays "
                "off late, such as weight perturbation, averaging, further views and learnt strategies, cannot "
                "show it. The weights of the objectives were tuned for 200 epochs of a network hundreds of times "
                "as large. A row that comes out otherwise than in print contradicts nothing."
            ),
            cut=Cut(
                images=2000,
                model=_SMALL_WRN,
                epochs=8,
                batch_size=64,
                optimizer=SGD(lr=0.1, schedule=WarmCosine(warmup=2)),
                averaging=EpochEMA(decay=0.7),
                most_steps=5,
                companion=_SMALL_WRN,
                strategy_every=5,
            ),
            judge={"images": 300, "policy": "audited"},
        ),
        Budget(
            "small",
            about=(
                "PreActResNet-18, all of CIFAR-10, 25 epochs of batches of 128: for one GPU. "
                f"{_SAME}, attack steps included. AutoAttack standard on the first 1,000 test images; one seed."
            ),
            can_say=(
                "How the methods compare on a network that many papers use, at an eighth of the usual epochs: "
                "differences of more than about six points lie outside both intervals, and methods are ranked by "
                "what they reach early."
            ),
            cannot_say=(
                "What the table says: it has a network of twelve times the operations, 76 to 200 epochs, and "
                "schedules that each method's authors chose. Robust overfitting, which early stopping, weight "
                "perturbation and averaging are made against, hardly begins in 25 epochs."
            ),
            cut=Cut(
                images=None,
                model=PreActResNet(),
                epochs=25,
                batch_size=128,
                optimizer=SGD(lr=0.1, schedule=WarmCosine(warmup=2)),
                averaging=EpochEMA(decay=0.8),
            ),
            judge={"images": 1000},
        ),
        Budget(
            "full",
            about=(
                "Every recipe as it was published, and AutoAttack standard on all 10,000 test images, in the ball "
                "that the published number is about: GPU-days for each row."
            ),
            can_say=(
                "Whether the published numbers come out here, within the interval and what another seed changes, "
                "usually a few tenths of a point."
            ),
            cannot_say=(
                "More than the recipes know: where a paper leaves a setting open, the row's recipe says what is "
                "chosen here, and a difference may come from that."
            ),
            cut=None,
            judge={},
        ),
    )
}
