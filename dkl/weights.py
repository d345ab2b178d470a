"""Things done to weights: averaging them, perturbing them (AWP), and keeping them in files.

Every file is written under a temporary name, flushed to the disk and renamed: a reader finds the old file or the
new one, never a part of one. Nothing is unpickled.
"""

import hashlib
import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from dkl import models, recipes
from dkl.documents import Count, DatasetName, Document
from dkl.files import replacing

State = dict[str, Tensor]


class CheckpointError(ValueError):
    """The file is not what it should be: damaged, foreign, or of another architecture."""


# --- averaging --------------------------------------------------------------------------------------------


@torch.no_grad()
def average(previous: State | None, state: Mapping[str, Tensor], decay: float) -> State:
    """The running average of state dicts after one more: decay * previous + (1 - decay) * state.

    The first state (`previous` None) is taken as it is. All entries take part, batch-norm buffers too; integer
    ones are averaged as float64, and `load_average` rounds them.

    Source: the average over epochs of arXiv:2305.13948, with decay 0.9.
    """
    current = {name: value if value.is_floating_point() else value.double() for name, value in state.items()}
    if previous is None:
        return {name: value.clone() for name, value in current.items()}
    return {name: decay * previous[name] + (1 - decay) * value for name, value in current.items()}


def load_average(model: nn.Module, averaged: State) -> None:
    """Put an average into `model`; integer entries (counts of batches) are rounded to the nearest integer."""
    own = model.state_dict()
    model.load_state_dict(
        {name: v if own[name].is_floating_point() else v.round() for name, v in averaged.items()}, strict=True
    )


# --- adversarial weight perturbation ----------------------------------------------------------------------


def awp_direction(model: nn.Module, loss: Callable[[], Tensor]) -> State:
    """Per weight tensor w, the ascent direction of the loss with the length of w itself.

        direction = ||w|| / (||g|| + 1e-20) * g,      g = d loss() / d w

    Convolution and linear kernels only: no biases, nothing of batch norms. `loss` runs the model, in the mode it
    is in; running statistics are put back, parameters and their .grad are not touched.

    Source: Wu et al., arXiv:2004.05884; computed here without a second network.
    """
    kernels = {name: w for name, w in model.named_parameters() if w.ndim > 1 and "weight" in name}
    buffers = {buffer: buffer.clone() for buffer in model.buffers()}
    gradients = torch.autograd.grad(loss(), list(kernels.values()))
    with torch.no_grad():
        for buffer, before in buffers.items():
            buffer.copy_(before)
        return {
            name: w.norm() / (gradient.norm() + 1e-20) * gradient
            for (name, w), gradient in zip(kernels.items(), gradients, strict=True)
        }


@contextmanager
def perturbed(model: nn.Module, direction: State, gamma: float) -> Iterator[None]:
    """Inside, every kernel is w + gamma * direction, in place; afterwards the same amount is taken off again.

    An optimiser step taken inside therefore starts, after it, from the unperturbed weights.
    """
    _shift(model, direction, gamma)
    try:
        yield
    finally:
        _shift(model, direction, -gamma)


@torch.no_grad()
def _shift(model: nn.Module, direction: State, factor: float) -> None:
    for name, shift in direction.items():
        model.get_parameter(name).add_(shift, alpha=factor)


# --- checkpoints ------------------------------------------------------------------------------------------


class _Metadata(Document):
    """What a checkpoint says about itself."""

    architecture: recipes.Model
    channels: Count
    classes: Count
    dataset: DatasetName


@dataclass(frozen=True)
class LoadedModel:
    """A network to be judged, in eval mode on the CPU, and what it is."""

    model: nn.Module
    """x_BCHW in [0, 1] -> logits_BK; what must be done to its input is done inside."""
    architecture: str
    """As tables print it: "WRN-34-10"."""
    channels: int
    classes: int
    dataset: str | None
    """What it was trained on, where that is known."""
    sha256: str
    """Of the file it came from; of weights and code where it came from a function."""
    preprocessing: str = "none"
    """What it does to pixels in [0, 1] first, in words."""
    notes: tuple[str, ...] = ()
    """What a result should mention."""


def save_checkpoint(
    path: Path, model: nn.Module, *, architecture: recipes.Model, channels: int, classes: int, dataset: str
) -> str:
    """Write the weights and how to rebuild the network as safetensors; the file's sha256 (hex).

    Equal weights give equal bytes, in every process.
    """
    metadata = _Metadata(architecture=architecture, channels=channels, classes=classes, dataset=dataset)
    document = json.dumps(metadata.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    tensors = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    # One key only: safetensors writes several in an order that differs from process to process.
    content = safetensors.torch.save(tensors, metadata={"dkl": document})
    with replacing(path) as file:
        file.write(content)
    return hashlib.sha256(content).hexdigest()


def load_checkpoint(path: Path) -> LoadedModel:
    """The network that `save_checkpoint` wrote to `path`.

    Raises CheckpointError for anything else, FileNotFoundError where there is no file.
    """
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = _Metadata.model_validate_json((file.metadata() or {})["dkl"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 it is no mapping
    except safetensors.SafetensorError as error:
        raise CheckpointError(
            f"{path} is not a safetensors file: {error}; make one of other weights with: dklbench convert"
        ) from error
    except KeyError:
        raise CheckpointError(
            f"{path} is safetensors without the metadata 'dkl' that says what network it is of; say so with: "
            "dklbench convert"
        ) from None
    except ValidationError as error:
        raise CheckpointError(f"the metadata of {path} does not describe a known model: {error}") from error
    with torch.device("meta"):  # shapes only: a file cannot make us allocate what it does not contain
        model = models.build(metadata.architecture, channels=metadata.channels, classes=metadata.classes)
    require_fit(path, tensors, model.state_dict())
    model.to_empty(device="cpu").load_state_dict(tensors, strict=True)
    return LoadedModel(
        model=model.eval(),
        architecture=recipes.show_model(metadata.architecture),
        channels=metadata.channels,
        classes=metadata.classes,
        dataset=metadata.dataset,
        sha256=sha256,
    )


def require_fit(path: Path, found: State, wanted: State) -> None:
    """CheckpointError with the first five missing and unexpected entries, unless names, shapes and types agree."""

    def describe(state: State) -> set[str]:
        return {f"{name} {tuple(value.shape)} {value.dtype}" for name, value in state.items()}

    missing, unexpected = describe(wanted) - describe(found), describe(found) - describe(wanted)
    if missing or unexpected:
        raise CheckpointError(
            f"the weights in {path} do not fit the architecture: "
            f"{len(missing)} missing ({', '.join(sorted(missing)[:5])}), "
            f"{len(unexpected)} unexpected ({', '.join(sorted(unexpected)[:5])})"
        )


# --- the state of a training run --------------------------------------------------------------------------


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Keep tensors, numbers, strings, lists and dicts of them for `load_state`."""
    with replacing(path) as file:
        torch.save(state, file)


def load_state(path: Path) -> dict[str, Any] | None:
    """What `save_state` kept, on the CPU; None where there is no file, CheckpointError where it is damaged."""
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, pickle.UnpicklingError) as error:
        # torch's own words recommend unpickling it all the same
        raise CheckpointError(f"{path} is damaged; delete it to train from the beginning") from error
