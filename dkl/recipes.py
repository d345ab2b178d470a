"""What may be asked: the frozen documents that REST, the database and the command line share. No torch here.

A recipe is a value. `Train` yields a checkpoint, `Evaluate` yields a robust accuracy, `EvaluateCorruptions` an
accuracy under common corruptions.
"""

import hashlib
import json
from typing import Annotated, Any, Literal, Self, assert_never

from pydantic import Field, TypeAdapter, model_validator

from dkl.documents import Count, DatasetName, Decay, Document, NonNegative, Positive, Seed, ThreatModel
from dkl.protocols import Evaluate, EvaluateCorruptions

# --- models -----------------------------------------------------------------------------------------------


class CNN(Document):
    """Two 3x3 convolutions with batch norm, one of them strided, and a linear head; for tiny images."""

    kind: Literal["cnn"] = "cnn"
    width: Count = 32


class ResNet(Document):
    """CIFAR-style post-activation ResNet (He et al., arXiv:1512.03385)."""

    kind: Literal["resnet"] = "resnet"
    depth: Literal[18] = 18
    width: Count = 64
    """Channels of the first stage; published models use 64."""


class PreActResNet(Document):
    """CIFAR-style pre-activation ResNet (He et al., arXiv:1603.05027)."""

    kind: Literal["preact-resnet"] = "preact-resnet"
    depth: Literal[18] = 18
    width: Count = 64
    """Channels of the first stage; published models use 64."""


class WideResNet(Document):
    """WRN-depth-width (Zagoruyko and Komodakis, arXiv:1605.07146)."""

    kind: Literal["wide-resnet"] = "wide-resnet"
    depth: Annotated[int, Field(ge=10, strict=True)] = 34
    width: Count = 10
    activation: Literal["relu", "silu"] = "relu"

    @model_validator(mode="after")
    def _depth_is_6n_plus_4(self) -> Self:
        if (self.depth - 4) % 6:
            raise ValueError(
                f"depth must be 6n + 4 (10, 16, 22, 28, 34, 40, ...), found {self.depth}; "
                f"take {self.depth - (self.depth - 4) % 6}"
            )
        return self


Model = Annotated[CNN | ResNet | PreActResNet | WideResNet, Field(discriminator="kind")]


def show_model(model: CNN | ResNet | PreActResNet | WideResNet) -> str:
    """The architecture's name as tables print it: "WRN-34-10", "PreActResNet-18"."""
    match model:
        case CNN():
            return f"CNN-{model.width}"
        case ResNet():
            return f"ResNet-{model.depth}" + ("" if model.width == 64 else f"-w{model.width}")
        case PreActResNet():
            return f"PreActResNet-{model.depth}" + ("" if model.width == 64 else f"-w{model.width}")
        case WideResNet():
            return f"WRN-{model.depth}-{model.width}" + ("" if model.activation == "relu" else "-SiLU")
        case _:
            assert_never(model)


# --- training ---------------------------------------------------------------------------------------------


class Natural(Document):
    """Cross-entropy on clean images."""

    kind: Literal["natural"] = "natural"


class IKL(Document):
    """CE(x, y) + wmse_weight * wMSE + ce_weight * soft cross-entropy: IKL-AT, arXiv:2305.13948, Eq. 10.

    The paper calls wmse_weight alpha and ce_weight beta; the authors' code has them the other way round.
    """

    kind: Literal["ikl"] = "ikl"
    wmse_weight: NonNegative = 20.0
    """Factor in front of the 1/4 form of the weighted MSE."""
    ce_weight: NonNegative = 4.0
    """Factor in front of the soft-label cross-entropy."""
    prior_temperature: Positive = 4.0
    """Softens the predictions that are averaged into the class prior (the paper's tau)."""


Objective = Annotated[Natural | IKL, Field(discriminator="kind")]


class PGD(Document):
    """The inner maximisation of adversarial training. The radius grows linearly, eps * epoch / epochs."""

    steps: Count = 5
    relative_step_size: Positive = 0.5
    """Step size in units of the epoch's eps."""
    loss: Literal["ikl", "kl"] = "ikl"
    """What is maximised: IKL with unit weights (the authors' CIFAR-100 script) or KL (CIFAR-10)."""


class AWP(Document):
    """Adversarial weight perturbation (Wu et al., arXiv:2004.05884)."""

    gamma: Positive = 0.005
    """Size of the perturbation relative to each weight tensor's norm."""
    first_epoch: Count = 10
    """Epochs before this one train without it."""


class SGD(Document):
    lr: Positive = 0.2
    """Initial learning rate; follows half a cosine over the epochs."""
    momentum: Decay = 0.9
    weight_decay: NonNegative = 5e-4


class Train(Document):
    """Fit a model from scratch."""

    kind: Literal["train"] = "train"
    dataset: DatasetName
    model: Model
    objective: Objective
    threat: ThreatModel | None = None
    """Needed by adversarial objectives, absent for natural training."""
    attack: PGD | None = None
    """The inner maximisation; needed by adversarial objectives, absent for natural training."""
    awp: AWP | None = None
    augmentation: Literal["none", "crop-flip"] = "crop-flip"
    """crop-flip: random crop after 4 pixels of zero padding, horizontal flip."""
    images: Count | None = None
    """Train on the first so many training images only; absent: on all."""
    epochs: Count
    batch_size: Count = 128
    optimizer: SGD = SGD()
    ema_decay: Decay | None = 0.9
    """Decay of the average over the epochs' weights, which is the result; absent: the last weights are."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _objective_gets_what_it_needs(self) -> Self:
        fields = {"threat": self.threat, "attack": self.attack}
        match self.objective:
            case Natural():
                extra = sorted(k for k, v in {**fields, "awp": self.awp}.items() if v is not None)
                if extra:
                    raise ValueError(f"natural training takes no {', '.join(extra)}; leave out or pick 'ikl'")
            case IKL():
                missing = sorted(k for k, v in fields.items() if v is None)
                if missing:
                    raise ValueError(f"the objective 'ikl' needs {' and '.join(missing)}")
                if self.threat is not None and self.threat.norm == "L1":
                    raise ValueError("training against L1 is not available; use Linf or L2")
            case _:
                assert_never(self.objective)
        return self


# --- recipes ----------------------------------------------------------------------------------------------

Recipe = Annotated[Train | Evaluate | EvaluateCorruptions, Field(discriminator="kind")]
RECIPE: TypeAdapter[Recipe] = TypeAdapter(Recipe)


def fingerprint(recipe: Recipe) -> str:
    """sha256 (hex) of the recipe's canonical JSON: equal questions have equal fingerprints."""
    document: dict[str, Any] = recipe.model_dump(mode="json")
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
