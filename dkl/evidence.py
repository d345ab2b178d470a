"""Evidence: per image what an evaluation found, and the adversarial images, in one file. No torch here.

The file is safetensors: nothing is unpickled, equal evidence gives equal bytes, and a file cannot make its reader
allocate more than a few times its own size. What a file claims is proved by `dkl.reverify`, which asks the model.

Format 2 adds to format 1 which classes were predicted, and some clean images to look at. Both are read.

Legend: N images of the evaluation, E radii, M images with a stored adversarial image, G images with their clean
picture stored, C channels, H, W pixels.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError, model_validator

from dkl.datasets import Arrays
from dkl.documents import DatasetName, Document, NonNegative, Pixels, Sha256, ThreatModel
from dkl.events import Phase
from dkl.files import replacing


class EvidenceError(ValueError):
    """The evidence is damaged, contradicts itself, or is about something else."""


# --- what it says about itself ----------------------------------------------------------------------------


class EvidenceStage(Document):
    """One stage of the evaluation; they are numbered from 0 as they ran."""

    name: str
    """"clean", or the attack's kind."""
    phase: Phase
    eps: NonNegative
    """Radius of the attack, in pixels; 0 for the clean pass."""


class Question(BaseModel):
    """Of a recipe, what its evidence is about. Other fields of the recipe are kept and not judged here."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    dataset: DatasetName
    threat: ThreatModel
    curve: tuple[Pixels, ...] = ()

    @model_validator(mode="after")
    def _curve_is_in_the_same_range(self) -> Self:
        for eps in self.curve:
            ThreatModel(norm=self.threat.norm, eps=eps)
        return self

    def radii(self) -> tuple[float, ...]:
        return tuple(sorted({self.threat.eps, *self.curve}))


class About(Document):
    """The metadata: whose verdicts these are, on which images, by what means."""

    format: Literal[1, 2] = 2
    recipe: dict[str, JsonValue]
    """The evaluation as it was asked for, in full."""
    fingerprint: Sha256
    """sha256 of the recipe's canonical JSON."""
    checkpoint_sha256: Sha256
    data_sha256: Sha256
    """Of the images and labels that were used, see `data_sha256`."""
    stages: tuple[EvidenceStage, ...]
    engine: str
    """Who ran the attacks, with version."""
    versions: dict[str, str]

    @model_validator(mode="after")
    def _fingerprint_is_the_recipes(self) -> Self:
        found = hashlib.sha256(_canonical(self.recipe)).hexdigest()
        if found != self.fingerprint:
            raise ValueError(f"the recipe has the fingerprint {found}, found {self.fingerprint}")
        return self

    @model_validator(mode="after")
    def _recipe_is_an_evaluation(self) -> Self:
        try:
            Question.model_validate(self.recipe)
        except ValidationError as error:
            raise ValueError(f"the recipe is no evaluation's, {_first_fault(error)}") from None
        return self

    @property
    def question(self) -> Question:
        return Question.model_validate(self.recipe)


def data_sha256(arrays: Arrays, images: NDArray[np.int64]) -> str:
    """sha256 (hex) of the images at the positions `images`, in their order, and of their labels and shape."""
    digest = hashlib.sha256(str((len(images), *arrays.images.shape[1:])).encode())
    for image in images:
        digest.update(np.ascontiguousarray(arrays.images[image]).data)
    digest.update(arrays.labels[images].astype("<i8").tobytes())
    return digest.hexdigest()


CLEAN_PICTURES = 256
CLEAN_BYTES = 16 * 2**20


def pictured(data_sha256: str, count: int, shape: tuple[int, ...]) -> NDArray[np.int32]:
    """Which of `count` images of the given shape have their clean picture stored, (G,), ascending.

    At most CLEAN_PICTURES of them and CLEAN_BYTES, in an order that is random and follows from the data alone: two
    evaluations on the same images hold the same pictures.
    """
    numbers = np.random.SeedSequence(int(data_sha256, 16)).generate_state(count, np.uint64)
    kept = min(CLEAN_PICTURES, CLEAN_BYTES // prod(shape))
    return np.sort(np.argsort(numbers, kind="stable")[:kept]).astype(np.int32)


# --- what it holds ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Evidence:
    """What an evaluation found. All arrays with an N have one entry per image, in ascending order of position."""

    about: About
    images: NDArray[np.int64]
    """(N,): positions in the data set's test split."""
    labels: NDArray[np.int64]
    """(N,)"""
    clean_correct: NDArray[np.bool_]
    """(N,): whether the model classifies the clean image correctly, with finite logits."""
    radii: NDArray[np.float64]
    """(E,): in pixels, ascending; the recipe's threat.eps and curve."""
    broken_at: NDArray[np.int8]
    """(N,): index of the smallest radius at which the image was broken; -1 where it stood or was wrong at once."""
    stage: NDArray[np.int16]
    """(N,): number of the stage that broke it; -1 for none."""
    restart: NDArray[np.int16]
    """(N,): the restart in which it fell, from 0; -1 for none, or not known."""
    target: NDArray[np.int16]
    """(N,): the class aimed at; -1 for none, or untargeted."""
    step: NDArray[np.int32]
    """(N,): the iteration or query at which it fell, from 0; -1 for none, or not known."""
    margin: NDArray[np.float32]
    """(N,): the smallest z_y - max_{k != y} z_k that the search saw; NaN where not known."""
    rows8: NDArray[np.int32]
    """(M8,): which of the N images those in `x8` belong to, ascending."""
    x8: NDArray[np.uint8]
    """(M8, C, H, W): adversarial images in 255ths."""
    rows32: NDArray[np.int32]
    """(M32,): which of the N images those in `x32` belong to, ascending."""
    x32: NDArray[np.float32]
    """(M32, C, H, W): adversarial images that would not be adversarial, or not in the ball, in 255ths."""
    predicted: NDArray[np.int32] | None = None
    """(N,): the class predicted for the clean image; -1 where the logits were not finite. Like all that follows
    absent in format 1."""
    predicted_adv: NDArray[np.int32] | None = None
    """(N,): the class predicted for the stored adversarial image; -1 where there is none."""
    rows_clean: NDArray[np.int32] | None = None
    """(G,): which of the N images those in `x_clean` are, as `pictured` says."""
    x_clean: NDArray[np.uint8] | None = None
    """(G, C, H, W): clean images in 255ths, as the data set has them."""

    def standing(self, radius: int) -> NDArray[np.bool_]:
        """(N,): classified correctly, and not broken at any radius up to the one with this index."""
        return standing_at(radius, self.clean_correct, self.broken_at)

    def in_format_1(self) -> "Evidence":
        """The same without predictions and clean images."""
        about = self.about.model_copy(update={"format": 1})
        return replace(self, about=about, predicted=None, predicted_adv=None, rows_clean=None, x_clean=None)


def standing_at(radius: int, clean_correct: NDArray[np.bool_], broken_at: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Which images are right, and unbroken at every radius up to the one with this index; fields of Evidence."""
    return clean_correct & ((broken_at < 0) | (broken_at > radius))


# --- the file ---------------------------------------------------------------------------------------------

_FORMAT_1 = {
    "images": "I64",
    "labels": "I64",
    "clean_correct": "BOOL",
    "radii": "F64",
    "broken_at": "I8",
    "stage": "I16",
    "restart": "I16",
    "target": "I16",
    "step": "I32",
    "margin": "F32",
    "rows8": "I32",
    "x8": "U8",
    "rows32": "I32",
    "x32": "F32",
}
_SINCE_FORMAT_2 = {"predicted": "I32", "predicted_adv": "I32", "rows_clean": "I32", "x_clean": "U8"}
_ARRAYS = {1: _FORMAT_1, 2: _FORMAT_1 | _SINCE_FORMAT_2}
"""Per format the fields of Evidence that are arrays, each with safetensors' name of its dtype."""
_DTYPES = {
    np.dtype(np.bool_): "BOOL",
    np.dtype(np.uint8): "U8",
    np.dtype(np.int8): "I8",
    np.dtype(np.int16): "I16",
    np.dtype(np.int32): "I32",
    np.dtype(np.int64): "I64",
    np.dtype(np.float32): "F32",
    np.dtype(np.float64): "F64",
}
_LARGEST_SIDE = 65_535


def write_evidence(path: Path, evidence: Evidence) -> str:
    """Keep `evidence`; the file's sha256 (hex). At every moment the file is complete or absent.

    Equal evidence gives equal bytes, in every process. Raises EvidenceError for what `read_evidence` would refuse.
    """
    fields = {name: getattr(evidence, name) for name in _ARRAYS[2]}
    arrays = {name: np.ascontiguousarray(array) for name, array in fields.items() if array is not None}
    found = {name: (_DTYPES.get(a.dtype, str(a.dtype)), a.shape) for name, a in arrays.items()}
    _require_layout(found, evidence.about.format)
    _require_sense(evidence)
    arrays["margin"] = np.where(np.isnan(evidence.margin), np.float32(np.nan), evidence.margin)  # one NaN of many
    document = _canonical(evidence.about.model_dump(mode="json")).decode()
    # One key only: safetensors writes several in an order that differs from process to process.
    content = safetensors.numpy.save(arrays, metadata={"dkl": document})
    with replacing(path) as file:
        file.write(content)
    return hashlib.sha256(content).hexdigest()


def read_evidence(path: Path) -> Evidence:
    """What `write_evidence` kept. EvidenceError for anything else, OSError where the file cannot be read."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            about = About.model_validate_json((file.metadata() or {})["dkl"])
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 it is no mapping
            found = {name: (p.get_dtype(), tuple(p.get_shape())) for name, p in parts.items()}
            _require_layout(found, about.format)
            evidence = Evidence(about, **{name: file.get_tensor(name) for name in found})
        _require_sense(evidence)
    except safetensors.SafetensorError as error:
        raise EvidenceError(f"{path} is not a safetensors file: {error}") from error
    except KeyError:
        raise EvidenceError(f"{path} is safetensors without the metadata 'dkl'; dkl did not write it") from None
    except ValidationError as error:
        raise EvidenceError(f"the metadata of {path} describe no evaluation: {_first_fault(error)}") from None
    except EvidenceError as error:
        raise EvidenceError(f"{path}: {error}") from None
    return evidence


def _canonical(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, fault['loc']))}: {fault['msg'].removeprefix('Value error, ')}".removeprefix(": ")


def _require_layout(found: dict[str, tuple[str, tuple[int, ...]]], format_: int) -> None:
    """`found`: per array its dtype and shape, known before any of it is read."""
    arrays = _ARRAYS[format_]
    if found.keys() != arrays.keys():
        missing, unexpected = sorted(arrays.keys() - found.keys()), sorted(found.keys() - arrays.keys())
        raise EvidenceError(
            f"evidence of format {format_} has {len(arrays)} arrays; missing: {missing}, unexpected: {unexpected}"
        )
    count, shape = found["images"][1][:1] or (0,), found["x8"][1][1:]
    if len(shape) != 3 or not all(1 <= side <= _LARGEST_SIDE for side in shape):
        raise EvidenceError(f"an image has channels, height and width of 1 to {_LARGEST_SIDE}, found {shape}")
    in_8_bits, in_32_bits = found["rows8"][1][:1] or (0,), found["rows32"][1][:1] or (0,)
    lengths: dict[str, tuple[int, ...]] = {
        "radii": found["radii"][1][:1] or (0,),
        "rows8": in_8_bits,
        "x8": (*in_8_bits, *shape),
        "rows32": in_32_bits,
        "x32": (*in_32_bits, *shape),
    }
    if "rows_clean" in arrays:
        pictures = found["rows_clean"][1][:1] or (0,)
        lengths |= {"rows_clean": pictures, "x_clean": (*pictures, *shape)}
    for name, dtype in arrays.items():
        expected = (dtype, lengths.get(name, count))
        if found[name] != expected:
            raise EvidenceError("{} must be {} {}, found {} {}".format(name, *expected, *found[name]))
    if not count[0] or count[0] > np.iinfo(np.int32).max:
        raise EvidenceError(f"evidence is about at least one image and fewer than 2^31, found {count[0]}")


def _require_sense(evidence: Evidence) -> None:
    """Raise unless all numbers are in range and agree with each other, as far as can be told without the model."""
    e, count = evidence, len(evidence.images)
    radii = e.about.question.radii()
    if tuple(e.radii.tolist()) != radii:
        raise EvidenceError(f"the radii of the recipe are {list(radii)}, found {e.radii.tolist()[:10]}")
    stages, broken = len(e.about.stages), e.broken_at >= 0
    stage_eps = np.array([stage.eps for stage in e.about.stages] + [0.0])
    faults = {
        "images must be positions in ascending order": bool(e.images[0] < 0 or (np.diff(e.images) <= 0).any()),
        "labels must not be negative": bool((e.labels < 0).any()),
        "clean_correct must be 0 or 1": bool((e.clean_correct.view(np.uint8) > 1).any()),
        f"broken_at must be -1..{len(radii) - 1}": not _within(e.broken_at, len(radii)),
        f"stage must be -1..{stages - 1}": not _within(e.stage, stages),
        "restart, target and step must be at least -1": any((a < -1).any() for a in (e.restart, e.target, e.step)),
        "margin must be a number or NaN": bool(np.isinf(e.margin).any()),
        f"rows8 must be ascending and below {count}": not _ascending(e.rows8, count),
        f"rows32 must be ascending and below {count}": not _ascending(e.rows32, count),
    }
    _refuse(faults)
    idle: list[NDArray[np.integer[Any]]] = [e.stage, e.restart, e.target, e.step]
    _refuse(
        {
            "an image that is broken was classified correctly before": bool((broken & ~e.clean_correct).any()),
            "an image that is broken names its stage": bool((broken & (e.stage < 0)).any()),
            "an image that is not broken has no stage, restart, target or step": any(
                (values[~broken] != -1).any() for values in idle
            ),
            "an attack aims at another class than the label": bool((broken & (e.target == e.labels)).any()),
            "an image falls to an attack with at least its radius": bool(
                (broken & (stage_eps[e.stage] < e.radii[e.broken_at])).any()
            ),
        }
    )
    if e.predicted is not None and e.predicted_adv is not None and e.rows_clean is not None:
        _refuse_predictions(e, e.predicted, e.predicted_adv)
        rows = pictured(e.about.data_sha256, count, e.x8.shape[1:])
        _refuse({"rows_clean are those that the data name": not np.array_equal(e.rows_clean, rows)})


def _refuse_predictions(e: Evidence, predicted: NDArray[np.int32], predicted_adv: NDArray[np.int32]) -> None:
    broken, right = e.broken_at >= 0, predicted == e.labels
    missed = (predicted_adv < 0) | (predicted_adv == e.labels)
    _refuse(
        {
            "predicted must be at least -1": bool((predicted < -1).any()),
            "an image is classified correctly where its label is predicted": not np.array_equal(
                right, e.clean_correct
            ),
            "an adversarial image is predicted to be of another class than the label": bool(
                (broken & missed).any()
            ),
            "an image that is not broken has no predicted_adv": bool((predicted_adv[~broken] != -1).any()),
        }
    )


def _refuse(faults: dict[str, bool]) -> None:
    for rule, violated in faults.items():
        if violated:
            raise EvidenceError(f"the evidence contradicts itself: {rule}")


def _within(values: NDArray[np.integer[Any]], end: int) -> bool:
    return bool(((values >= -1) & (values < end)).all())


def _ascending(rows: NDArray[np.int32], end: int) -> bool:
    return not len(rows) or bool(rows[0] >= 0 and rows[-1] < end and (np.diff(rows) > 0).all())
