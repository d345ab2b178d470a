"""Keeping weights in files.

Every file is written under a temporary name, flushed to the disk and renamed: a reader finds the old file or the
new one, never a part of one. Nothing is unpickled, and no weights are read before the file's header has been
checked against the network that it names.
"""

import hashlib
import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from pydantic import Field, ValidationError, model_validator
from torch import nn

from dkl import architectures, models, plugins
from dkl.documents import Count, DatasetName, Document
from dkl.files import replacing
from dkl.headers import MOST_TENSORS, HeaderError, read_header
from dkl.preprocessing import show_normalisation
from dkl.tensors import State, outlines, write_tensors


class CheckpointError(ValueError):
    """The file is not what it should be: damaged, foreign, or of another architecture."""


# --- checkpoints ------------------------------------------------------------------------------------------


class About(Document):
    """What a checkpoint says about itself."""

    architecture: architectures.Model
    channels: Count
    classes: Count
    dataset: DatasetName
    package: str | None = Field(default=None, exclude_if=lambda value: value is None)
    """What has to be installed beside ours, of a plugin's network."""

    @model_validator(mode="before")
    @classmethod
    def _as_written_before_silu_had_a_network_of_its_own(cls, value: Any) -> Any:
        architecture = value.get("architecture") if isinstance(value, dict) else None
        if not isinstance(architecture, dict) or architecture.get("activation") != "relu":
            return value
        return {**value, "architecture": {k: v for k, v in architecture.items() if k != "activation"}}


def about(architecture: architectures.Model, *, channels: int, classes: int, dataset: str) -> About:
    """What a checkpoint of such a network says about itself. PluginError where it is a missing plugin's."""
    return About(
        architecture=architecture,
        channels=channels,
        classes=classes,
        dataset=dataset,
        package=_package(architecture),
    )


def _package(architecture: architectures.Model) -> str | None:
    if not isinstance(architecture, architectures.PluginModel):
        return None
    return plugins.find("model", architecture.name).package


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
    packages: tuple[str, ...] = ()
    """What its network is made of beside ours: the package of a plugin."""


def save_checkpoint(
    path: Path, model: nn.Module, *, architecture: architectures.Model, channels: int, classes: int, dataset: str
) -> str:
    """Write the weights and how to rebuild the network as safetensors; the file's sha256 (hex).

    Equal weights give equal bytes, in every process.
    """
    said = about(architecture, channels=channels, classes=classes, dataset=dataset)
    return save_weights(path, model.state_dict(), said)


def save_weights(path: Path, state: State, about: About) -> str:
    """Write `state`, which is of the network `about` names, as `save_checkpoint` does; the file's sha256 (hex)."""
    document = json.dumps(about.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    with replacing(path) as file:
        return write_tensors(file, state, document)


class Description(NamedTuple):
    about: About
    network: nn.Module
    """On the meta device: names, shapes and types, no weights."""


def describe(path: Path) -> Description:
    """What the checkpoint at `path` says it is, once its header fits that. No weights are read, none allocated.

    Raises CheckpointError for anything but a checkpoint, FileNotFoundError where there is no file.
    """
    try:
        with path.open("rb") as file:
            header = read_header(file)
        about = About.model_validate_json(header.metadata["dkl"])
    except HeaderError as error:
        raise CheckpointError(
            f"{path} is not a safetensors file: {error}; make one of other weights with: dklbench convert"
        ) from None
    except KeyError:
        raise CheckpointError(
            f"{path} is safetensors without the metadata 'dkl' that says what network it is of; say so with: "
            "dklbench convert"
        ) from None
    except ValidationError as error:
        raise CheckpointError(f"the metadata of {path} does not describe a known model: {error}") from error
    _require_plugin(path, about)
    try:
        network = outline(about.architecture, channels=about.channels, classes=about.classes)
    except ValueError as error:
        raise CheckpointError(f"the network of {path} cannot be built: {error}") from error
    require_fit(path, outlines(header), network.state_dict())
    return Description(about, network)


def _require_plugin(path: Path, about: About) -> None:
    """CheckpointError where the network is of a plugin that is not installed here."""
    if not isinstance(about.architecture, architectures.PluginModel):
        return
    try:
        plugins.find("model", about.architecture.name)
    except plugins.PluginError as error:
        raise CheckpointError(
            f"{path} needs the plugin {about.architecture.name!r} of the package {about.package}: {error}"
        ) from error


def outline(architecture: architectures.Model, *, channels: int, classes: int) -> nn.Module:
    """The network on the meta device, which has names, shapes and types but no weights.

    ValueError where it cannot be built, or has more parameters than any file of weights may have tensors: whoever
    writes a depth of a billion shall not find out how long that takes.
    """
    built = 0

    def count(*_: object) -> None:
        nonlocal built
        built += 1
        if built > MOST_TENSORS:
            raise ValueError(f"the network has more than {MOST_TENSORS} tensors of weights; ask for a smaller one")

    counting = nn.modules.module.register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            return models.build(architecture, channels=channels, classes=classes)
    except (RuntimeError, OverflowError, TypeError):  # more elements than 64 bits can count
        raise ValueError("the network's weights are larger than any memory; ask for a smaller one") from None
    finally:
        counting.remove()


def load_checkpoint(path: Path) -> LoadedModel:
    """The network that `save_checkpoint` wrote to `path`.

    Raises CheckpointError for anything else, FileNotFoundError where there is no file.
    """
    about = describe(path).about
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    tensors = safetensors.torch.load_file(path)
    with torch.random.fork_rng(devices=[]):  # in full, for the buffers that no state dict holds
        model = models.build(about.architecture, channels=about.channels, classes=about.classes)
    model.load_state_dict(tensors, strict=True)
    return LoadedModel(
        model=model.eval(),
        architecture=architectures.show_model(about.architecture),
        channels=about.channels,
        classes=about.classes,
        dataset=about.dataset,
        sha256=sha256,
        preprocessing=_normalisation(about.architecture),
        packages=() if about.package is None else (about.package,),
    )


def _normalisation(architecture: architectures.Model) -> str:
    """What the network does to pixels itself, in words."""
    normalisation = architectures.normalisation_of(architecture)
    return "none" if normalisation is None else show_normalisation(normalisation.mean, normalisation.std)


def require_fit(path: Path, found: State, wanted: State) -> None:
    """CheckpointError with the first five missing and unexpected entries, unless names, shapes and types agree."""

    def describe(state: State) -> set[str]:
        return {f"{name} {tuple(value.shape)} {value.dtype}" for name, value in state.items()}

    missing, unexpected = describe(wanted) - describe(found), describe(found) - describe(wanted)
    if missing or unexpected:
        raise CheckpointError(
            f"the weights in {path} do not fit the architecture: "
            f"{len(missing)} missing ({', '.join(sorted(missing)[:5])}), "
            f"{len(unexpected)} unexpected ({', '.join(sorted(unexpected)[:5])}); they are of another network"
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
