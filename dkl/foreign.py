"""Weights that others wrote: reading them without running what is in the file, naming them as a network does."""

import argparse
import pickle
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from dkl import architectures, layouts
from dkl.datasets import known_dataset
from dkl.tensors import State
from dkl.weights import CheckpointError, about, outline, require_fit, save_weights

_ENTRIES = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "last",
    "ema",
    "ema_state_dict",
)
"""Where training scripts keep a state dict inside what they save."""
_NUMPY_SCALAR = np.float64(0).__reduce__()[0]
_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?")),
    _NUMPY_SCALAR,
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
]
"""Beside tensors: the arguments of a script and numbers of numpy, which carry data and run nothing."""


def read_entries(path: Path) -> dict[str, object]:
    """What the file holds: safetensors, or what torch.save wrote, of which only plain data are read.

    Raises CheckpointError for anything else, and for a file that would have to run code to be read.
    """
    try:
        with path.open("rb") as file:
            is_safetensors = file.read(9)[8:] == b"{"
        if is_safetensors:
            return dict(safetensors.torch.load_file(path))
        with torch.serialization.safe_globals(_HARMLESS):
            # Mapped, nothing is read before it is used; what is no zip archive cannot be mapped.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            raise CheckpointError(
                f"{path} holds more than weights ({_culprit(error)}), and reading that would run code from the "
                "file; save its state dict alone: torch.save(model.state_dict(), FILE)"
            ) from error
        raise CheckpointError(f"{path} is no file of weights, or damaged") from error
    except (safetensors.SafetensorError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is no file of weights, or damaged") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}; expected a state dict, or a dict with one"
        )
    return {str(name): value for name, value in content.items()}


def _culprit(error: pickle.UnpicklingError) -> str:
    """The class or function that the file asks for, as torch's message has it: "... GLOBAL name was ..."."""
    return str(error).partition("GLOBAL ")[2].split(maxsplit=1)[0]


def find_state(path: Path, content: Mapping[str, object], prefer: Sequence[str] = ()) -> State:
    """The state dict in `content`: the first entry that `prefer` names, else itself, else its only one.

    Raises CheckpointError where there is none, or several and no preference.
    """
    inside = {name: entry for name in (*prefer, *_ENTRIES) if _is_state(entry := content.get(name))}
    if not inside and _is_state(content):
        return _tensors(path, content)
    if not inside:
        raise CheckpointError(
            f"{path} holds no state dict: neither is it one, nor is there one under {', '.join(_ENTRIES)}; "
            f"found {', '.join(list(content)[:8])}"
        )
    chosen = next((name for name in prefer if name in inside), None)
    if chosen is None and len(inside) > 1:
        raise CheckpointError(f"{path} holds several state dicts; choose one with --entry: {', '.join(inside)}")
    return _tensors(path, inside[chosen or next(iter(inside))])


def _is_state(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and any(isinstance(entry, Tensor) and entry.ndim for entry in value.values())
        and not any(isinstance(entry, Mapping) for entry in value.values())
    )


def _tensors(path: Path, state: object) -> State:
    assert isinstance(state, Mapping)
    found = {str(name): value.detach() for name, value in state.items() if isinstance(value, Tensor)}
    for name, value in found.items():
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise CheckpointError(
                f"{name} in {path} is a {value.layout if value.device.type == 'cpu' else value.device} tensor of "
                f"{value.dtype}, which holds no plain weights; save the network's own float32 weights"
            )
    return found


class Converted(NamedTuple):
    sha256: str
    """Of the checkpoint, in hex."""
    notes: tuple[str, ...]
    """What its user has to know about it, in sentences."""


def convert(
    source: Path, target: Path, *, architecture: architectures.Model, dataset: str, entry: str | None = None
) -> Converted:
    """Write the weights in `source` as a checkpoint of ours to `target`.

    The number of channels and of classes is the weights' own. Counts of batches, which no inference reads, may be
    missing, or numbers with fractions where they were averaged; 16-bit weights become float32. Names, shapes and
    types are compared before any weight is copied. Raises CheckpointError where the weights do not fit or are not
    finite, ValueError where the architecture cannot be built.
    """
    content = read_entries(source)
    if entry is not None and not _is_state(content.get(entry)):
        raise CheckpointError(
            f"{source} holds no state dict called {entry!r}; found {', '.join(list(content)[:8])}"
        )
    found = find_state(source, content, prefer=[entry] if entry else [])
    plain = layouts.read(source, found, architecture)
    channels, classes = layouts.sizes(plain.state, architecture)
    known = known_dataset(dataset)
    if known and classes != len(known.class_names):
        raise CheckpointError(
            f"the weights in {source} tell {classes} classes apart, {dataset} has "
            f"{len(known.class_names)}; name the data set that they were trained on"
        )
    wanted = outline(architecture, channels=channels, classes=classes).state_dict()
    counts = {name: value for name, value in wanted.items() if name.endswith("num_batches_tracked")}
    state = {
        **{name: torch.zeros(value.shape, dtype=value.dtype) for name, value in counts.items()},
        **plain.state,
    }
    require_fit(source, layouts.typed({name: value.to("meta") for name, value in state.items()}), wanted)
    _require_finite(source, state, "NaN or infinite: its training diverged")
    converted = layouts.typed(state)
    _require_finite(source, converted, "too large for float32")
    said = about(architecture, channels=channels, classes=classes, dataset=dataset)
    return Converted(save_weights(target, converted, said), (*plain.notes, *layouts.on_types(plain.state)))


def _require_finite(path: Path, state: State, otherwise: str) -> None:
    for name, value in state.items():
        if value.is_floating_point() and (odd := int((~value.isfinite()).sum())):
            raise CheckpointError(
                f"{name} in {path} has {odd} of {value.numel()} values that are {otherwise}; take an earlier "
                "checkpoint of the same training"
            )


# --- into networks that are not ours ----------------------------------------------------------------------

_CONSTANTS = {"mean", "std", "mu", "sigma", "num_batches_tracked"}
"""Last parts of names whose value the network's own code knows: normalisation, and what no inference reads."""


def load_into(network: nn.Module, path: Path, spellings: Iterable[State]) -> str | None:
    """Put the spelling of the weights that fits best into `network`; a note on what it has no use for, or None.

    Every weight of the network has to be there, but for the constants of its normalisation. Raises CheckpointError
    with the first five missing and unexpected entries.
    """
    wanted = network.state_dict()
    state = min(spellings, key=lambda spelling: len(wanted.keys() - spelling.keys()))
    missing = sorted(name for name in wanted.keys() - state.keys() if name.rpartition(".")[2] not in _CONSTANTS)
    if missing or any(state[name].shape != value.shape for name, value in wanted.items() if name in state):
        require_fit(path, state, wanted)
    unused = sorted(state.keys() - wanted.keys())
    network.load_state_dict({name: value for name, value in state.items() if name in wanted}, strict=False)
    if not unused:
        return None
    return f"{len(unused)} entries of {path.name} have no place in the network ({', '.join(unused[:5])})"
