"""What may be asked: the frozen documents that REST, the database and the command line share. No torch here.

A recipe is a value. `Train` yields a checkpoint, `Distill` yields one from a teacher, `Import` one of an upload;
`Evaluate` yields a robust accuracy, `EvaluateCorruptions` an accuracy under common corruptions.
"""

import hashlib
import json
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, TypeAdapter, model_validator

from dkl.architectures import Model
from dkl.documents import (
    Count,
    DatasetName,
    Decay,
    Document,
    Fraction,
    NonNegative,
    Positive,
    Seed,
    ThreatModel,
)
from dkl.imports import Import
from dkl.lessons import FeatureLesson, Lesson
from dkl.objectives import (
    AWP,
    DAJAT,
    LASAT,
    LASTRADES,
    LBGAT,
    MART,
    PGD,
    PGDAT,
    Natural,
    Objective,
    PluginObjective,
)
from dkl.protocols import Evaluate, EvaluateCorruptions, ModelSource
from dkl.strategy import require_attackable

# --- the images -------------------------------------------------------------------------------------------


class Augmentation(Document):
    """What is done to every training image, anew in every epoch, in this order.

    Of pictures in folders a random rectangle is cut out instead of `crop` and `padding`.
    """

    crop: Annotated[int, Field(ge=0, strict=True)] = 4
    """Pad by so many pixels and cut the original size out anywhere; 0: no cropping."""
    padding: Literal["zeros", "reflect"] = "zeros"
    flip: bool = True
    """Mirror left to right with probability 1/2."""
    rotation: Annotated[float, Field(ge=0, le=180, strict=True)] = 0.0
    """Turn by up to so many degrees either way."""
    policy: Literal["autoaugment", "autoaugment-first", "cutout"] | None = None
    """autoaugment: the CIFAR-10 policy of arXiv:1805.09501; autoaugment-first: the same before all else. cutout: a
    black square of half the side (16 of 32 pixels), arXiv:1708.04552."""


class SecondView(Document):
    """Every image a second time, augmented otherwise. The natural term is a mean over both views alike."""

    augmentation: Augmentation = Augmentation(policy="autoaugment")
    weight: NonNegative = 0.5
    """Of the second view's robust term; the first view's has weight 1."""


class Generated(Document):
    """Generated images in every batch, drawn with replacement: arXiv:2302.04638.

    An epoch has as many batches as it would have without them.
    """

    file: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
    """FILE.npz in the data directory, uncompressed, with the arrays `image` (uint8, N,H,W,C) and `label`; or a
    folder of that name with image.npy and label.npy."""
    fraction: Annotated[float, Field(gt=0, lt=1, strict=True)] = 0.7
    """Of each batch."""


class Validation(Document):
    """Training images that are held out, and judged after every epoch, clean and under PGD with margin loss."""

    images: Count = 1024
    """The first so many of the training set; in folders classes take turns."""
    steps: Count = 10
    """Of PGD, each 2.5 * eps / steps long."""


# --- the optimiser ----------------------------------------------------------------------------------------


class Cosine(Document):
    """lr / 2 * (1 + cos(pi * t)) in epoch e = 1..E, with t = e / (E + 1), or (e - 1) / E from the full lr."""

    kind: Literal["cosine"] = "cosine"
    from_full: bool = False
    """Whether the first epoch has the full learning rate."""


class WarmCosine(Document):
    """lr * e / W in the epochs e = 1..W, then lr / 2 * (1 + cos(pi * (e - W) / (E - W + 1))) up to e = E."""

    kind: Literal["warmup-cosine"] = "warmup-cosine"
    warmup: Count = 10
    """W."""


class Steps(Document):
    """The learning rate is divided by ten at the beginning of each of these epochs."""

    kind: Literal["steps"] = "steps"
    epochs: Annotated[tuple[Count, ...], Field(min_length=1, max_length=100)]
    first_epoch: Annotated[float, Field(gt=0, le=1, strict=True, exclude_if=lambda share: share == 1)] = 1.0
    """The share of the learning rate that the first epoch has."""


class OneCycle(Document):
    """Up from lr / 25 to lr and down to lr / 250,000 in half cosines; momentum goes 0.95, 0.85, 0.95 against it.

    One step per epoch, as `torch.optim.lr_scheduler.OneCycleLR` counts; the optimiser's momentum has no say.
    """

    kind: Literal["one-cycle"] = "one-cycle"
    rise: Fraction = 0.025
    """The share of the epochs in which it grows."""


Schedule = Annotated[Cosine | WarmCosine | Steps | OneCycle, Field(discriminator="kind")]


class SGD(Document):
    lr: Positive = 0.2
    """The largest learning rate."""
    schedule: Schedule = Cosine()
    momentum: Decay = 0.9
    nesterov: bool = False
    weight_decay: NonNegative = 5e-4
    decay_batch_norms: bool = True
    """Whether the weight decay acts on the scales and shifts of batch norms too."""


# --- averaging --------------------------------------------------------------------------------------------


class EpochEMA(Document):
    """average <- decay * average + (1 - decay) * state after every epoch, batch-norm statistics included."""

    kind: Literal["epoch-ema"] = "epoch-ema"
    decay: Decay = 0.9


class StepEMA(Document):
    """average <- decay * average + (1 - decay) * weights after every update.

    The decay of the k-th update after the start is min(decay, (1 + k) / (10 + k)).
    """

    kind: Literal["step-ema"] = "step-ema"
    decay: Decay = 0.995
    start: Fraction = 0.025
    """The share of all updates in which the average is only a copy."""
    ramp: bool = True
    """Whether the decay grows as (1 + k) / (10 + k) at first."""
    statistics: Literal["model", "averaged"] = "model"
    """Of batch norms: those of the model itself, or averaged like the weights."""


Averaging = Annotated[EpochEMA | StepEMA, Field(discriminator="kind")]


# --- training ---------------------------------------------------------------------------------------------


class Fit(Document):
    """What training and distilling have in common."""

    dataset: DatasetName
    images: Count | None = None
    """Train on the first so many training images only; absent: on all."""
    augmentation: Augmentation | None = Augmentation()
    model: Model
    epochs: Count
    batch_size: Count = 128
    """Images per update, views not counted twice, over all processes."""
    optimizer: SGD = SGD()
    averaging: Averaging | None = EpochEMA()
    """The averaged weights are the result; absent: the last weights are."""
    validation: Validation | None = None
    select: Literal["last", "best"] = "last"
    """Which epoch's weights are the result. best: of the highest accuracy on the validation images, under PGD
    where there is a threat."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of convolutions and products; logits, losses, weights and averages are float32 in any case."""
    compile: Literal["off", "default", "cuda-graphs"] = "off"
    """Whether torch.compile makes the network's kernels, and replays them as CUDA graphs."""
    threat: ThreatModel | None = None
    """What is defended against; absent where nothing is."""
    attack: PGD | None = None
    """The inner maximisation; goes with `threat`."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _the_best_is_chosen_on_something(self) -> Self:
        if self.select == "best" and self.validation is None:
            raise ValueError("select 'best' needs validation, such as validation.images=1024")
        return self

    @model_validator(mode="after")
    def _the_threat_can_be_trained_against(self) -> Self:
        if self.threat is not None and self.threat.norm == "L1":
            raise ValueError("training against L1 is not available; use Linf or L2")
        return self


class Train(Fit):
    """Fit a model from scratch."""

    kind: Literal["train"] = "train"
    generated: Generated | None = None
    second_view: SecondView | None = None
    objective: Objective
    """Adversarial ones need `threat` and `attack`, natural training takes neither."""
    awp: AWP | None = None
    processes: Annotated[int, Field(ge=1, le=64, strict=True)] = 1
    """Copies of the model that share every batch, one per GPU; batch norms see the whole batch."""

    @model_validator(mode="after")
    def _objective_gets_what_it_needs(self) -> Self:
        fields = {"threat": self.threat, "attack": self.attack}
        if isinstance(self.objective, Natural):
            adversarial = {**fields, "awp": self.awp, "second_view": self.second_view}
            extra = sorted(k for k, v in adversarial.items() if v is not None)
            if extra:
                raise ValueError(f"natural training takes no {', '.join(extra)}; leave out or pick 'ikl'")
            return self
        missing = sorted(k for k, v in fields.items() if v is None)
        if missing:
            raise ValueError(f"the objective '{self.objective.kind}' needs {' and '.join(missing)}")
        has_prior = self.objective.kind in {"ikl", "gkl"}
        if self.attack is not None and self.attack.loss == "ikl" and not has_prior:
            raise ValueError(
                f"attack.loss 'ikl' needs the class prior of the objectives 'ikl' and 'gkl'; "
                f"with '{self.objective.kind}' take '{_usual_loss(self.objective)}'"
            )
        own = isinstance(self.objective, PluginObjective)
        if self.attack is not None and self.attack.loss == "objective" and not own:
            raise ValueError(
                f"attack.loss 'objective' is for objectives of plugins; with '{self.objective.kind}' take "
                f"'{_usual_loss(self.objective)}'"
            )
        return self

    @model_validator(mode="after")
    def _a_learnt_strategy_can_be_followed(self) -> Self:
        if isinstance(self.objective, LASAT | LASTRADES):
            require_attackable(
                self.objective.kind,
                threat=self.threat,
                mode=self.attack.mode if self.attack else None,
                eps_schedule=self.attack.eps_schedule if self.attack else None,
                second_view=self.second_view is not None,
                compiled=self.compile,
            )
        return self

    @model_validator(mode="after")
    def _what_is_learnt_beside_the_network_fits(self) -> Self:
        if not isinstance(self.objective, LBGAT | DAJAT):
            return self
        kind = self.objective.kind
        if self.second_view is not None:
            own = "objective.views says how many it has" if kind == "dajat" else "or pick 'trades'"
            raise ValueError(f"the objective '{kind}' takes no second_view; leave it out, {own}")
        if not self.optimizer.decay_batch_norms:
            raise ValueError(
                f"the objective '{kind}' learns batch norms beside the network's, with one weight decay for all; "
                "leave decay_batch_norms out"
            )
        return self


def _usual_loss(objective: Objective) -> str:
    if isinstance(objective, PluginObjective):
        return "objective"
    return "ce" if isinstance(objective, PGDAT | MART | LASAT) else "kl"


# --- distilling -------------------------------------------------------------------------------------------


class Distillation(Fit):
    """How a student is fitted, without its teacher: data, student, objective."""

    kind: Literal["distill"] = "distill"
    objective: Lesson
    clean_weight: NonNegative = 0.2
    """With a threat: the weight of what the teacher teaches about clean images, beside weight 1 for adversarial
    ones."""
    averaging: Averaging | None = None
    """The averaged weights are the result; absent: the last weights are."""
    keep_teacher: bool = False
    """Whether the teacher's logits are kept on disk for other students of the same teacher, data, augmentation,
    batch size and seed, which then train without it."""

    @model_validator(mode="after")
    def _threat_and_attack_go_together(self) -> Self:
        if (self.threat is None) != (self.attack is None):
            raise ValueError("robust distillation needs threat and attack, other distillation takes neither")
        if self.attack is not None and self.attack.loss in {"ikl", "objective"}:
            raise ValueError(
                f"attack.loss '{self.attack.loss}' is not available when distilling; take 'kl', the teacher's, "
                "or 'ce'"
            )
        return self

    @model_validator(mode="after")
    def _features_are_compared_on_clean_images(self) -> Self:
        if isinstance(self.objective, FeatureLesson):
            for field, asked in {"threat": self.threat is not None, "keep_teacher": self.keep_teacher}.items():
                if asked:
                    raise ValueError(
                        f"the objective '{self.objective.kind}' compares features, which goes without {field}; "
                        "take 'kd', 'dkd', 'ikl-kd' or 'gkl-kd', or leave it out"
                    )
            if self.compile != "off":
                raise ValueError(
                    f"the objective '{self.objective.kind}' looks into the networks; set compile='off'"
                )
        return self


class Distill(Distillation):
    """Fit a student to a teacher's predictions or features. The teacher is frozen, in eval mode throughout."""

    teacher: ModelSource
    """The model to learn from, of the same classes."""


# --- recipes ----------------------------------------------------------------------------------------------

Recipe = Annotated[Train | Distill | Import | Evaluate | EvaluateCorruptions, Field(discriminator="kind")]
RECIPE: TypeAdapter[Recipe] = TypeAdapter(Recipe)


def fingerprint(recipe: Recipe) -> str:
    """sha256 (hex) of the recipe's canonical JSON: equal questions have equal fingerprints."""
    document: dict[str, Any] = recipe.model_dump(mode="json")
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
