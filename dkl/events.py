"""What a job says while it runs. No torch here.

An event with a `key` is a fact of the run: a resumed run says it again and whoever keeps a record keeps it once.
`Progress` is the present moment and is not kept.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from dkl.flags import Flags


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @property
    def key(self) -> str | None:
        return None


class Started(_Event):
    """Work begins, or goes on after an interruption."""

    kind: Literal["started"] = "started"
    device: str
    versions: dict[str, str]
    commit: str | None
    """The git commit of the code, with "-dirty" where files differ from it; absent outside a checkout."""
    resumed: bool
    """Whether an earlier attempt had left something to go on from."""


class Progress(_Event):
    kind: Literal["progress"] = "progress"
    phase: str
    """What is going on, for people: "epoch 3 of 10", "square, batch 1 of 2"."""
    done: float
    total: float
    rate: float
    """Images per second (training) or forward passes per second (evaluation), lately."""
    eta_seconds: float


class ChoiceShares(BaseModel):
    """Which values a learnt attack strategy took."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """"eps" and "step_size", in pixels of [0, 1]; "steps"; of LAS-TRADES "beta"."""
    values: tuple[float, ...]
    shares: tuple[float, ...]
    """Of the epoch's images, one for each value."""
    mean: float


class StrategyEpoch(BaseModel):
    """What the strategy network of LAS-AT chose and earned in an epoch."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    choices: tuple[ChoiceShares, ...]
    entropy: float
    """Of the distributions that were drawn from, in nats: over all choices, a mean over the images."""
    rewards: dict[str, float]
    """Means over the images that it learnt from: "loss", "robust" and "clean" as they are, and "total", their
    weighted sum. Empty where it learnt from none."""
    updates: int
    """Of the strategy network, in this epoch."""


class Epoch(_Event):
    """One epoch of training is over. Accuracies are fractions."""

    kind: Literal["epoch"] = "epoch"
    epoch: int
    epochs: int
    loss: float
    """The sum of the terms, a mean over the epoch's training images."""
    terms: dict[str, float]
    """What the loss is made of, with its weights: "natural", "kl", "wmse", "soft_ce", ..."""
    clean_accuracy: float | None
    """On the training batches as they were seen, augmented and while the model changed; absent for pgd-at and
    las-at, which see no clean images."""
    adversarial_accuracy: float | None
    """The same on the inner maximisation's images; absent for natural training."""
    teacher_accuracy: float | None = None
    """That of the teacher which learns along, on the clean images; absent where there is none."""
    validation_accuracy: float | None
    """On the held-out images; absent where the recipe holds none out. Of the averaged weights if there are any."""
    validation_robust_accuracy: float | None
    """The same under PGD at the recipe's full eps; absent for natural training too."""
    eps: float | None
    """The radius that no adversarial image left; absent where nothing is attacked, and where each image had one of
    its own and none was cut back to the threat's (las-at and las-trades without `clip_to_threat`)."""
    strategy: StrategyEpoch | None = None
    """How images were attacked; absent where the attack is the same for all."""
    lr: float
    images_per_second: float
    seconds: float
    """Validation included."""
    eta_seconds: float
    """Of all epochs to come."""

    @property
    def key(self) -> str:
        return f"epoch-{self.epoch}"


class Adjusted(_Event):
    """The run goes on otherwise than it began, to go on at all."""

    kind: Literal["adjusted"] = "adjusted"
    sentence: str
    """What happened and what was done, for people."""
    micro_batch: int
    """Images that pass the network at once from now on; in training, gradients are summed up to the recipe's
    batch."""

    @property
    def key(self) -> str:
        return f"adjusted-{self.micro_batch}"


Phase = Literal["clean", "suite", "search", "recheck", "screen", "audit", "fallback"]
"""clean: no attack yet. suite: the suite on all images that stand. search, recheck: of the policy fast, in 16 bits
and again in float32. screen: the cheap search. audit: the suite on the chosen few of the policy audited; fallback:
on all others, because the audit found something."""


class BatchDone(_Event):
    """The verdicts of one stage on one batch of test images.

    An evaluation goes through its stages one after the other; a stage takes the images that still stand, in
    batches. Stages are numbered from 0, the clean pass, as they run.
    """

    kind: Literal["batch"] = "batch"
    stage: int
    name: str
    """"clean", or the attack's kind."""
    phase: Phase
    """Why the stage runs."""
    eps: float
    """Radius of the attack, in pixels; 0 for the clean pass."""
    batch: int
    batches: int
    """In this stage."""
    images: tuple[int, ...]
    """The images' positions in the data set's test split."""
    standing: str
    """One character per image: "1" classified correctly so far, "0" not."""
    forwards: int
    """Images that passed the model, verification not counted."""
    backwards: int
    seconds: float
    rejected: int
    """Claimed adversarial images that the verifier refused: outside the ball or the pixel range, or not fooling
    the model in float32."""
    warnings: tuple[str, ...]
    """What looked suspicious: zero gradients, logits that are not finite, ..."""

    @property
    def key(self) -> str:
        return f"stage-{self.stage}-batch-{self.batch}"


class Provenance(BaseModel):
    """Where a result comes from: enough to ask the same question again."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    recipe: dict[str, Any]
    """The whole document, defaults included."""
    fingerprint: str
    seed: int
    dataset_sha256: str | None
    """Of the images that were used, and of their labels: for training, of those that the model learns from. Absent
    for an import, which looks at none."""
    checkpoint_sha256: str
    """The model's file: the one that was judged, or that the training or the import left."""
    device: str
    """"NVIDIA H200", "cpu"; several with commas, where several shared the work."""
    driver: dict[str, str] | None
    """Versions of the GPU's software: "nvidia" of the driver, "cuda" of the runtime, "cudnn"; absent on a CPU."""
    flags: dict[str, bool | str]
    """Settings of torch on which rounding depends, as they were."""
    platform: str
    """Operating system and kind of processor."""
    processor: str
    """What the processor is called."""
    versions: dict[str, str]
    commit: str | None


class TrainResult(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["train"] = "train"
    checkpoint_sha256: str
    """The file `model.safetensors` in the work directory."""
    parameters: int
    epochs: int
    selected_epoch: int
    """The epoch after which the weights were as they are in the checkpoint."""
    clean_accuracy: float
    """On the whole test set."""
    many_accuracy: float | None = None
    medium_accuracy: float | None = None
    few_accuracy: float | None = None
    """Means over the classes with more than 100, 20 to 100, and fewer than 20 training images; absent where all
    classes are in one group, or none is in this one."""
    validation_accuracy: float | None
    validation_robust_accuracy: float | None
    """On the held-out training images, after `selected_epoch`."""
    notes: tuple[str, ...]
    """What differs from the recipe to the letter."""
    provenance: Provenance
    seconds: float
    """Training time over all attempts."""


class DistillResult(BaseModel):
    """A student has learnt from its teacher."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["distill"] = "distill"
    checkpoint_sha256: str
    """The file `model.safetensors` in the work directory."""
    parameters: int
    """Of the student."""
    extra_parameters: int
    """Learnt beside the student, and thrown away."""
    epochs: int
    selected_epoch: int
    """The epoch after which the weights were as they are in the checkpoint."""
    clean_accuracy: float
    """Top-1 on the whole test set."""
    class_accuracy: tuple[float | None, ...]
    """Per class on the test set; absent for a class without test images."""
    many_accuracy: float | None
    medium_accuracy: float | None
    few_accuracy: float | None
    """Means over the classes with more than 100, 20 to 100, and fewer than 20 training images; absent where all
    classes are in one group, or none is in this one."""
    validation_accuracy: float | None
    validation_robust_accuracy: float | None
    """On the held-out training images, after `selected_epoch`."""
    teacher: str
    """Its architecture."""
    teacher_sha256: str
    teacher_accuracy: float
    """Top-1 on the same test images."""
    seconds_per_iteration: float
    """Median over the epochs: what an update took, from the batch to the new weights."""
    notes: tuple[str, ...]
    """What differs from the recipe to the letter."""
    provenance: Provenance
    seconds: float
    """Training time over all attempts."""


class ImportResult(BaseModel):
    """An upload was taken in as a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["import"] = "import"
    checkpoint_sha256: str
    """The file `model.safetensors` in the work directory."""
    parameters: int
    source_sha256: str
    """The file that was uploaded."""
    format: Literal["safetensors", "pt"]
    """What that was: safetensors, or written by torch.save."""
    notes: tuple[str, ...]
    """What the user of the checkpoint has to know: what was converted or left out, how pixels were normalised."""
    provenance: Provenance


class StageResult(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    phase: Phase
    eps: float
    attacked: int
    """Images that were still standing, and attacked."""
    accuracy: float
    """Fraction of all images still classified correctly after this stage; at the largest radius so far."""
    forwards: int
    backwards: int
    seconds: float


class RobustAt(BaseModel):
    """A point of the curve of robust accuracy over the radius."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    eps: float
    robust_accuracy: float
    robust_interval: tuple[float, float]


class EvaluateResult(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["evaluate"] = "evaluate"
    images: int
    clean_accuracy: float
    clean_interval: tuple[float, float]
    """95 % Wilson score interval of clean_accuracy."""
    robust_accuracy: float
    """Fraction of images that no attack broke, at threat.eps."""
    robust_interval: tuple[float, float]
    """95 % Wilson score interval of robust_accuracy, for the images as a sample of all images."""
    curve: tuple[RobustAt, ...]
    """At every radius that was asked for, ascending; threat.eps is among them."""
    stages: tuple[StageResult, ...]
    class_clean_accuracy: tuple[float | None, ...]
    class_robust_accuracy: tuple[float | None, ...]
    """Per class, at threat.eps; absent for a class without test images."""
    protocol: str
    """What was done, as tables name it: "AutoAttack standard", "AutoAttack standard, audited", ..."""
    engine: str
    """Who ran the attacks, with version."""
    precision: str
    """Of the search: "float32", "float16", "bfloat16". Verdicts are float32 always."""
    notes: tuple[str, ...]
    """How the suite was adapted to this model, what the policy decided on the way, and where memory was full."""
    could_still_break: float | None
    """Policy audited: with 95 % confidence the whole suite would have broken no more than this fraction of all
    images beside those counted; absent for other policies, and where all images got the whole suite."""
    stopped_early: bool
    """Whether stop_below ended the evaluation; robust_accuracy is then an upper bound only."""
    rejected: int
    warnings: tuple[str, ...]
    forwards: int
    backwards: int
    checkpoint_sha256: str
    architecture: str
    preprocessing: str
    """What the model does to pixels in [0, 1] first; "none" where it takes them as they are."""
    evidence_sha256: str
    """The file `evidence.safetensors`: per image what broke it, and the adversarial images."""
    flags: Flags | None = None
    """Per image, whether it stood; absent in results of an older version."""
    provenance: Provenance
    seconds: float


class CorruptionDone(_Event):
    """All test images have been classified under one corruption at one severity."""

    kind: Literal["corruption"] = "corruption"
    corruption: str
    """"clean" for the images as they are."""
    severity: int
    """1 to 5; 0 for the images as they are."""
    images: int
    accuracy: float
    not_finite: int
    """Images with logits that are NaN or infinite; they count as wrong."""
    seconds: float
    """Making or reading the images included."""

    @property
    def key(self) -> str:
        return f"corruption-{self.corruption}-{self.severity}"


class CorruptionAccuracies(BaseModel):
    """A row of the table."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    corruption: str
    accuracies: tuple[float, ...]
    """One per severity, in the order of the result's `severities`."""
    mean: float


class CorruptionsResult(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["corruptions"] = "corruptions"
    images: int
    """Test images; each was classified clean and under every corruption at every severity."""
    clean_accuracy: float
    clean_interval: tuple[float, float]
    """95 % Wilson score interval of clean_accuracy."""
    corruption_accuracy: float
    """The mean over all corruptions and severities, as RobustBench ranks by."""
    corruption_interval: tuple[float, float]
    """95 % interval of corruption_accuracy, for the images as a sample of all images; the corruptions are no
    sample, and it says nothing about others."""
    severities: tuple[int, ...]
    table: tuple[CorruptionAccuracies, ...]
    source: str
    """Where the corrupted images come from: "CIFAR-10-C", or who made them, with version."""
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    checkpoint_sha256: str
    architecture: str
    preprocessing: str
    """What the model does to pixels in [0, 1] first; "none" where it takes them as they are."""
    provenance: Provenance
    seconds: float


class Finished(_Event):
    """The last event."""

    kind: Literal["finished"] = "finished"
    result: Annotated[
        TrainResult | DistillResult | ImportResult | EvaluateResult | CorruptionsResult,
        Field(discriminator="kind"),
    ]

    @property
    def key(self) -> str:
        return "finished"


Event = Started | Progress | Epoch | Adjusted | BatchDone | CorruptionDone | Finished
