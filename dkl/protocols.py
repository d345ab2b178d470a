"""How a model is judged: which model, on which images, under which threat, by which attacks. No torch here."""

import re
from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from dkl.datasets import known_dataset
from dkl.documents import (
    Count,
    DatasetName,
    Document,
    Fraction,
    JobId,
    Normalisation,
    Pixels,
    Seed,
    Sha256,
    ThreatModel,
)
from dkl.suites import APGD, AUTOATTACK, Attack, Suite, TargetedAPGD, Version, require_targets
from dkl.zoo_names import CLASSES, find

# --- which model ------------------------------------------------------------------------------------------


class Checkpoint(Document):
    """A stored checkpoint, named by its content."""

    checkpoint: Sha256
    preprocessing: Normalisation | None = None
    """For weights that were trained on normalised input; absent: the model takes pixels in [0, 1]."""


class JobResult(Document):
    """The model that an earlier job trained; an evaluation waits for it."""

    job: JobId
    preprocessing: Normalisation | None = None
    """For weights that were trained on normalised input; absent: the model takes pixels in [0, 1]."""


class Zoo(Document):
    """A model of RobustBench's zoo, with the preprocessing that RobustBench gives it."""

    zoo: Annotated[str, AfterValidator(lambda name: str(find(name)))]
    """DATASET/THREAT/NAME, such as cifar10/Linf/Wang2023Better_WRN-28-10."""


def _timm_name(name: str) -> str:
    if not re.fullmatch(r"\w+(\.\w+)?", name, re.ASCII):
        raise ValueError(f"{name!r} is no timm name; write ARCHITECTURE or ARCHITECTURE.TAG: resnet18.a1_in1k")
    return name


class Timm(Document):
    """A pretrained model of the timm library, with timm's own resizing, cropping and normalisation."""

    timm: Annotated[str, AfterValidator(_timm_name)]
    """Architecture, or architecture and tag: resnet18.a1_in1k. Not a path, not a repository of a hub."""


def _torchvision_name(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9_]{1,80}\.[A-Z0-9_]{1,80}", name, re.ASCII) or name.endswith(".DEFAULT"):
        raise ValueError(
            f"{name!r} names no weights of torchvision; write ARCHITECTURE.WEIGHTS: resnet18.IMAGENET1K_V1"
        )
    return name


class Torchvision(Document):
    """A pretrained classifier of the torchvision library, with the resizing, cropping and normalisation of its
    weights."""

    torchvision: Annotated[str, AfterValidator(_torchvision_name)]
    """Architecture and weights: resnet18.IMAGENET1K_V1. DEFAULT means others in other versions, so name them."""


def _function_name(name: str) -> str:
    module, _, function = name.partition(":")
    if not function.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(f"{name!r} names no function; write MODULE:NAME, such as mymodels:robust_net")
    return name


class Function(Document):
    """A function that returns the model. It runs code, so only the operator's own machine takes it."""

    function: Annotated[str, AfterValidator(_function_name)]
    """module:name, called without arguments; it returns an nn.Module, x in [0, 1] -> logits."""

    @property
    def refusal(self) -> str:
        """Why a service does not run it, and what does."""
        return (
            f"a service runs no code of its users; judge {self.function} on your own machine with: "
            f"dklbench run RECIPE --model {self.function}"
        )


_SOURCES = ("job", "checkpoint", "zoo", "timm", "torchvision", "function")


def _source(value: object) -> str | None:
    """The tag of the first source that `value` names; no tag is a field, so that messages can leave tags out."""
    present = value if isinstance(value, dict) else getattr(value, "model_fields_set", ())
    return next((f"from {name}" for name in _SOURCES if name in present), None)


ModelSource = Annotated[
    Annotated[JobResult, Tag("from job")]
    | Annotated[Checkpoint, Tag("from checkpoint")]
    | Annotated[Zoo, Tag("from zoo")]
    | Annotated[Timm, Tag("from timm")]
    | Annotated[Torchvision, Tag("from torchvision")]
    | Annotated[Function, Tag("from function")],
    Discriminator(
        _source,
        custom_error_type="model_source",
        custom_error_message='say which model to judge: {"job": JOB_ID}, {"checkpoint": SHA256}, '
        '{"zoo": "cifar10/Linf/NAME"}, {"timm": NAME} or {"torchvision": NAME}',
    ),
]


# --- by which attacks -------------------------------------------------------------------------------------

Policy = Literal["exact", "fast", "audited", "screen"]
Engine = Literal["dkl", "pyautoattack"]
MOST = 100
"""Attacks of a suite, and radii of a curve."""
_LENGTH = Field(json_schema_extra={"minItems": 1, "maxItems": MOST})
"""Of a suite. Pydantic's own limits would count the valid attacks only, and complain beside their faults."""


def _some(attacks: Suite) -> Suite:
    if not 1 <= len(attacks) <= MOST:
        raise ValueError(f"a suite has 1 to {MOST} attacks, found {len(attacks)}; name some, or take 'standard'")
    return attacks


class Protocol(Document):
    """How a model is judged, without the model: data, threat model, attacks."""

    kind: Literal["evaluate"] = "evaluate"
    dataset: DatasetName
    threat: ThreatModel
    suite: Annotated[
        Annotated[Version, Tag("version")]
        | Annotated[tuple[Attack, ...], AfterValidator(_some), _LENGTH, Tag("attacks")],
        Discriminator(lambda value: "version" if isinstance(value, str) else "attacks"),
    ] = "standard"
    """An AutoAttack version, or one's own attacks in order."""
    policy: Policy = "exact"
    """exact: the whole suite in float32. fast: the whole suite searched in 16 bits where the hardware has them,
    and again in float32 on the survivors with the smallest margins. audited: a cheap search with targeted APGD,
    then the whole suite on the survivors with the smallest margins and on a random sample of the others; on all
    of them if that sample finds anything. screen: the cheap search alone, never called AutoAttack."""
    engine: Engine = "dkl"
    """dkl: our own attacks. pyautoattack: the reference, for comparison; knows the policy exact only."""
    curve: Annotated[tuple[Pixels, ...], Field(max_length=MOST)] = ()
    """Further radii at which the robust accuracy is measured, in the same norm; work is shared between them."""
    images: Count | None = None
    """Evaluate on so many test images only; absent: on all."""
    sample: Literal["first", "random"] = "first"
    """Which ones: the first, as published evaluations do, or a random sample that depends on the seed."""
    stop_below: Fraction | None = None
    """Stop as soon as the robust accuracy is certain to be below this fraction; absent: go through to the end."""
    chunk_size: Count = 512
    """Images attacked together: the unit of work, of resuming and of memory. No verdict of our attacks depends on
    it; pyautoattack draws its random numbers for a batch, so there some do."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _large_eps_is_for_l1(self) -> Self:
        for attack in self.attacks():
            if isinstance(attack, APGD | TargetedAPGD) and attack.large_eps and self.threat.norm != "L1":
                raise ValueError(
                    f"large_eps is made for L1, found {self.threat.norm}; leave it out of {attack.kind}"
                )
        return self

    @model_validator(mode="after")
    def _fits_a_known_data_set(self) -> Self:
        if known := known_dataset(self.dataset):
            if not isinstance(self.suite, str):  # the published versions adapt
                require_targets(self.suite, len(known.class_names))
            if self.images is not None and self.images > known.test_images:
                raise ValueError(
                    f"{self.dataset} has {known.test_images} test images, found images={self.images}; "
                    "ask for fewer"
                )
        return self

    @model_validator(mode="after")
    def _policy_is_possible(self) -> Self:
        if self.policy != "exact":
            if self.engine == "pyautoattack":
                raise ValueError(f"the engine pyautoattack knows the policy exact only, found {self.policy!r}")
            if any(isinstance(attack, APGD) and attack.eot > 1 for attack in self.attacks()):
                raise ValueError(
                    f"policy {self.policy!r} is made for deterministic models; a suite for randomised ones "
                    "(eot above 1, or rand) is run exact"
                )
        return self

    @model_validator(mode="after")
    def _curve_is_in_the_same_range(self) -> Self:
        for eps in self.curve:
            ThreatModel(norm=self.threat.norm, eps=eps)
        if len(set(self.curve)) < len(self.curve):
            raise ValueError("curve names a radius twice; give each once")
        return self

    def attacks(self) -> Suite:
        """The attacks to run, in order."""
        return AUTOATTACK[self.suite][self.threat.norm] if isinstance(self.suite, str) else self.suite

    def radii(self) -> tuple[float, ...]:
        """All radii at which to measure, ascending: threat.eps and the curve's."""
        return tuple(sorted({self.threat.eps, *self.curve}))


class Evaluate(Protocol):
    """Clean accuracy of a model, then its accuracy under each attack of the suite."""

    model: ModelSource
    """Which model: {"job": ID}, {"checkpoint": SHA256}, {"zoo": "cifar10/Linf/NAME"}, {"timm": NAME} or
    {"torchvision": NAME}."""

    @model_validator(mode="after")
    def _a_zoo_model_knows_the_classes(self) -> Self:
        _require_known_classes(self.model, self.dataset)
        return self


def _require_known_classes(model: object, dataset: str) -> None:
    """ValueError where `model` is of the zoo and was trained on another number of classes than `dataset` has."""
    if isinstance(model, Zoo) and (facts := known_dataset(dataset)):
        known, asked = CLASSES[find(model.zoo).dataset], len(facts.class_names)
        if known != asked:
            raise ValueError(
                f"{dataset} has {asked} classes, the zoo model {model.zoo} tells {known} apart; "
                "evaluate it on a data set with the classes that it knows"
            )


def show_protocol(suite: object, policy: str) -> str:
    """How tables name what was done: "AutoAttack standard", "AutoAttack standard, audited", "custom", "screen".

    AutoAttack without further words means the whole suite in float32.
    """
    if policy == "screen":
        return "screen"
    name = f"AutoAttack {suite}" if isinstance(suite, str) else "custom"
    return name if policy == "exact" else f"{name}, {policy}"


# --- by common corruptions --------------------------------------------------------------------------------

Corruption = Literal[
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
]
"""The 15 of Hendrycks and Dietterich, arXiv:1903.12261, in the paper's order: noise, blur, weather, digital."""
CORRUPTIONS: tuple[Corruption, ...] = get_args(Corruption)
Severity = Literal[1, 2, 3, 4, 5]
PUBLISHED_CORRUPTIONS = {"cifar10": "CIFAR-10-C", "cifar100": "CIFAR-100-C"}
"""Per data set the published set of its corrupted test images, by Hendrycks and Dietterich."""


class CorruptionProtocol(Document):
    """How a model is judged under common corruptions, without the model: data, corruptions, severities.

    The defaults are RobustBench's protocol: the mean accuracy over 15 corruptions at 5 severities each.
    """

    kind: Literal["corruptions"] = "corruptions"
    dataset: DatasetName
    source: Literal["published", "generated"] = "published"
    """published: the authors' files, CIFAR-10-C or CIFAR-100-C, which published results are about. generated: made
    here from the clean test images with imagecorruptions, in strengths chosen for ImageNet; comparable with each
    other only."""
    corruptions: Annotated[tuple[Corruption, ...], Field(min_length=1)] = CORRUPTIONS
    severities: Annotated[tuple[Severity, ...], Field(min_length=1)] = (1, 2, 3, 4, 5)
    images: Count | None = None
    """Judge on the first so many test images only; absent: on all."""
    batch_size: Count = 512
    """Images that go through the model together."""
    seed: Seed = 0
    """Of the noise in generated corruptions."""

    @model_validator(mode="after")
    def _each_is_named_once(self) -> Self:
        for field, values in {"corruptions": self.corruptions, "severities": self.severities}.items():
            if len(set(values)) < len(values):
                raise ValueError(f"{field} names {max(values, key=values.count)} twice; give each once")
        return self

    @model_validator(mode="after")
    def _what_is_published_exists(self) -> Self:
        if self.source == "published" and self.dataset not in PUBLISHED_CORRUPTIONS:
            raise ValueError(
                f"there are no published corruptions of {self.dataset}, only of "
                f"{' and '.join(PUBLISHED_CORRUPTIONS)}; ask for the source 'generated'"
            )
        return self


class EvaluateCorruptions(CorruptionProtocol):
    """Clean accuracy of a model, then its accuracy under each corruption at each severity."""

    model: ModelSource
    """Which model: {"job": ID}, {"checkpoint": SHA256}, {"zoo": "cifar10/corruptions/NAME"}, {"timm": NAME} or
    {"torchvision": NAME}."""

    @model_validator(mode="after")
    def _a_zoo_model_knows_the_classes(self) -> Self:
        _require_known_classes(self.model, self.dataset)
        return self


# --- either way -------------------------------------------------------------------------------------------

AnyProtocol = Protocol | CorruptionProtocol
"""How to judge a model; it still needs the model."""
Judgement = Evaluate | EvaluateCorruptions
"""A recipe that judges a model."""
