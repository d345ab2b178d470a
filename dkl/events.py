"""What a job says while it runs. No torch here.

An event with a `key` is a fact of the run: a resumed run says it again and whoever keeps a record keeps it once.
`Progress` is the present moment and is not kept.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


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
    resumed: bool
    """Whether an earlier attempt had left something to go on from."""


class Progress(_Event):
    kind: Literal["progress"] = "progress"
    phase: str
    """What is going on, for people: "epoch 3 of 10", "chunk 1 of 2: square"."""
    done: float
    total: float
    rate: float
    """Images per second (training) or forward passes per second (evaluation), lately."""
    eta_seconds: float


class Epoch(_Event):
    """One epoch of training is over. Accuracies are fractions on the training batches as they were seen."""

    kind: Literal["epoch"] = "epoch"
    epoch: int
    epochs: int
    loss: float
    clean_accuracy: float
    adversarial_accuracy: float | None
    """On the inner maximisation's images; absent for natural training."""
    eps: float | None
    lr: float
    seconds: float

    @property
    def key(self) -> str:
        return f"epoch-{self.epoch}"


class Stage(BaseModel):
    """Which images still stand after the clean pass or after an attack."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """"clean", or the attack's kind."""
    standing: str
    """One character per image of the chunk: "1" classified correctly so far, "0" not."""
    seconds: float


class ChunkDone(_Event):
    """The verdicts on one chunk of test images."""

    kind: Literal["chunk"] = "chunk"
    chunk: int
    chunks: int
    first_image: int
    stages: tuple[Stage, ...]
    """The clean pass first, then the attacks in order."""
    rejected: int
    """Claimed adversarial images that the verifier refused: outside the ball or the pixel range."""
    warnings: tuple[str, ...]
    """What the attacks themselves found suspicious: zero gradients, randomness, ..."""

    @property
    def key(self) -> str:
        return f"chunk-{self.chunk}"


class TrainResult(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["train"] = "train"
    checkpoint_sha256: str
    """The file `model.safetensors` in the work directory."""
    parameters: int
    epochs: int
    clean_accuracy: float
    """On the whole test set, of the averaged weights."""
    seconds: float
    """Training time over all attempts."""


class StageResult(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    accuracy: float
    """Fraction of all images still classified correctly after this stage."""
    seconds: float


class EvaluateResult(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["evaluate"] = "evaluate"
    images: int
    clean_accuracy: float
    robust_accuracy: float
    """Fraction of images that no attack broke."""
    robust_interval: tuple[float, float]
    """95 % Wilson score interval of robust_accuracy, for the images as a sample of all images."""
    stages: tuple[StageResult, ...]
    class_robust_accuracy: tuple[float | None, ...]
    """Per class; absent for a class without test images."""
    rejected: int
    warnings: tuple[str, ...]
    checkpoint_sha256: str
    architecture: str
    engine: str
    """Who ran the attacks, with version."""
    seconds: float


class Finished(_Event):
    """The last event."""

    kind: Literal["finished"] = "finished"
    result: Annotated[TrainResult | EvaluateResult, Field(discriminator="kind")]

    @property
    def key(self) -> str:
        return "finished"


Event = Started | Progress | Epoch | ChunkDone | Finished
