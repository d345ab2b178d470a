"""What may be asked: the frozen documents that REST, the database and the command line share. No torch here.

A recipe is a value. `Train` yields a checkpoint, `Evaluate` yields a robust accuracy.
Pixels live in [0, 1]; every pixel quantity also reads a fraction such as "8/255".
"""

import hashlib
import json
import re
from typing import Annotated, Any, Literal, Self, assert_never

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    TypeAdapter,
    WithJsonSchema,
    model_validator,
)

from dkl.datasets import check_name

_FRACTION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)\s*")


def _read_fraction(value: object) -> object:
    if not isinstance(value, str):
        return value
    match = _FRACTION.fullmatch(value)
    if match is None or float(match[2]) == 0:
        raise ValueError(f"write a number or a fraction such as '8/255', not {value!r}")
    return float(match[1]) / float(match[2])


Count = Annotated[int, Field(ge=1, strict=True)]
Seed = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
Positive = Annotated[float, Field(gt=0, strict=True)]
NonNegative = Annotated[float, Field(ge=0, strict=True)]
Decay = Annotated[float, Field(ge=0, lt=1, strict=True)]
Pixels = Annotated[
    float,
    BeforeValidator(_read_fraction),
    Field(gt=0, strict=True),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0},
                {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*/\s*\d+(\.\d+)?\s*$"},
            ]
        }
    ),
]
DatasetName = Annotated[str, AfterValidator(check_name)]
JobId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Norm = Literal["Linf", "L2", "L1"]


class Document(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, validate_default=True
    )


class ThreatModel(Document):
    """What a robust accuracy is about: every perturbation with ||delta||_norm <= eps that stays in [0, 1]."""

    norm: Norm
    eps: Pixels
    """Radius of the ball, in pixels of [0, 1]: 8/255, 0.5, ..."""

    @model_validator(mode="after")
    def _linf_stays_inside_the_pixel_range(self) -> Self:
        if self.norm == "Linf" and self.eps >= 1:
            raise ValueError(
                f"an Linf eps of {self.eps:g} reaches from black to white; pixels are in [0, 1], "
                f"did you mean '{self.eps:g}/255'?"
            )
        return self

    def __str__(self) -> str:
        return f"{self.norm} {show_pixels(self.eps)}"


def show_pixels(value: float) -> str:
    """`value` the way papers write it: small whole numbers of 255ths as "8/255", else a decimal."""
    levels = value * 255
    return f"{round(levels)}/255" if levels < 32.5 and abs(levels - round(levels)) < 1e-6 else f"{value:.4g}"


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


# --- evaluation -------------------------------------------------------------------------------------------


class APGD(Document):
    """Auto-PGD (Croce and Hein, arXiv:2003.01690)."""

    kind: Literal["apgd-ce", "apgd-dlr"]
    steps: Count = 100
    restarts: Count = 1
    eot: Count = 1
    """Gradients averaged per step, for randomised models."""
    large_eps: bool = False
    """Shrink the radius 3 eps, 2 eps, eps on the way (arXiv:2103.01208), as AutoAttack does for L1."""


class TargetedAPGD(Document):
    """Auto-PGD on the targeted DLR loss, one run per target class."""

    kind: Literal["apgd-t"] = "apgd-t"
    steps: Count = 100
    restarts: Count = 1
    targets: Count = 9
    """The most likely wrong classes; at most classes - 1 are used."""
    large_eps: bool = False


class FAB(Document):
    """Fast adaptive boundary attack (Croce and Hein, arXiv:1907.02044)."""

    kind: Literal["fab"] = "fab"
    steps: Count = 100
    restarts: Count = 5


class TargetedFAB(Document):
    """FAB towards one target class at a time."""

    kind: Literal["fab-t"] = "fab-t"
    steps: Count = 100
    targets: Count = 9
    """The most likely wrong classes; at most classes - 1 are used."""


class Square(Document):
    """Square attack: random search without gradients (Andriushchenko et al., arXiv:1912.00049)."""

    kind: Literal["square"] = "square"
    queries: Count = 5000
    restarts: Count = 1


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
    FAB(),
    Square(),
    TargetedAPGD(),
    TargetedFAB(),
)
_RAND: Suite = (APGD(kind="apgd-ce", eot=20), APGD(kind="apgd-dlr", eot=20))

AUTOATTACK: dict[Version, dict[Norm, Suite]] = {
    "standard": {"Linf": _STANDARD, "L2": _STANDARD, "L1": _STANDARD_L1},
    "plus": {"Linf": _PLUS, "L2": _PLUS, "L1": _PLUS},
    "rand": {"Linf": _RAND, "L2": _RAND, "L1": _RAND},
}
"""The attacks, in order, of each AutoAttack version and norm."""


class Checkpoint(Document):
    """A stored checkpoint, named by its content."""

    checkpoint: Sha256


class JobResult(Document):
    """The model that an earlier job trained; an evaluation waits for it."""

    job: JobId


def _source(value: object) -> str | None:
    present = value if isinstance(value, dict) else getattr(value, "model_fields_set", ())
    return next((name for name in ("job", "checkpoint") if name in present), None)


ModelSource = Annotated[
    Annotated[JobResult, Tag("job")] | Annotated[Checkpoint, Tag("checkpoint")],
    Discriminator(
        _source,
        custom_error_type="model_source",
        custom_error_message='say which model to judge: {"job": JOB_ID} or {"checkpoint": SHA256}',
    ),
]


class Protocol(Document):
    """How a model is judged, without the model: data, threat model, attacks."""

    kind: Literal["evaluate"] = "evaluate"
    dataset: DatasetName
    threat: ThreatModel
    suite: Annotated[
        Annotated[Version, Tag("version")] | Annotated[tuple[Attack, ...], Field(min_length=1), Tag("attacks")],
        Discriminator(lambda value: "version" if isinstance(value, str) else "attacks"),
    ] = "standard"
    """An AutoAttack version, or one's own attacks in order."""
    images: Count | None = None
    """Evaluate on the first so many test images only; absent: on all."""
    chunk_size: Count = 512
    """Images attacked together: the unit of work, of resuming and of memory."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _large_eps_is_for_l1(self) -> Self:
        for attack in self.attacks():
            if isinstance(attack, APGD | TargetedAPGD) and attack.large_eps and self.threat.norm != "L1":
                raise ValueError(
                    f"large_eps is made for L1, found {self.threat.norm}; leave it out of {attack.kind}"
                )
        return self

    def attacks(self) -> Suite:
        """The attacks to run, in order."""
        return AUTOATTACK[self.suite][self.threat.norm] if isinstance(self.suite, str) else self.suite


def show_suite(suite: object) -> str:
    """How tables name a recipe's suite: "AutoAttack standard", or "custom" for one's own attacks."""
    return f"AutoAttack {suite}" if isinstance(suite, str) else "custom"


class Evaluate(Protocol):
    """Clean accuracy of a model, then its accuracy under each attack of the suite."""

    model: ModelSource
    """Which model: {"job": ID} or {"checkpoint": SHA256}."""


Recipe = Annotated[Train | Evaluate, Field(discriminator="kind")]
RECIPE: TypeAdapter[Train | Evaluate] = TypeAdapter(Recipe)


def fingerprint(recipe: Train | Evaluate) -> str:
    """sha256 (hex) of the recipe's canonical JSON: equal questions have equal fingerprints."""
    document: dict[str, Any] = recipe.model_dump(mode="json")
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
