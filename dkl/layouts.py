"""What published code leaves in a state dict beside a network's own weights, or writes differently.

module., model., 0.         wrappers: DataParallel, a class with the network in it, Sequential
1.                          a Sequential whose first layer has no weights: DM-AT's normalisation on request
mean, std; mu, sigma        normalisation, in many models of RobustBench
sub_block1.                 TRADES builds a second first stage, and never runs it
num_batches_tracked         numbers with fractions, where swa.py of the DKL authors averaged them
"""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dkl import architectures, models
from dkl.preprocessing import show_normalisation
from dkl.tensors import State
from dkl.weights import CheckpointError

_PREFIXES = ("module.", "model.", "_orig_mod.", "0.")
"""What DataParallel, a class with the network in it, torch.compile and Sequential put in front of every name."""
_UNUSED = "sub_block1."
_CONSTANTS = (("mean", "std"), ("mean", "sigma"), ("mu", "sigma"))
"""What those of a normalisation are called."""
_MOST_CHANNELS = 64
"""Of images; more numbers than that are no constants of a normalisation."""
_SAME = 1e-6
"""By so much constants differ that were rounded to float32."""
_ELSEWHERE = "judge it with its own code: dklbench run RECIPE --model MODULE:NAME"


class Plain(NamedTuple):
    state: State
    """Named as our network has it; `typed` gives it the types, too."""
    notes: tuple[str, ...]
    """What its user has to know, in sentences."""


class Normalisation(NamedTuple):
    """Of pixels in [0, 1], per channel; unlike the document unchecked, for it comes from a file."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def without_prefixes(state: State) -> State:
    """`state` without what wrappers put in front of all its names."""
    while prefix := next((p for p in _PREFIXES if state and all(name.startswith(p) for name in state)), None):
        state = _without_prefix(state, prefix)
    return state


def _without_prefix(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): value for name, value in state.items()}


def read(path: Path, state: State, architecture: architectures.Model) -> Plain:
    """`state` as our network of this architecture would name it, and what was no weight taken out of it.

    Raises CheckpointError where names or constants show that it is of another network.
    """
    state, normalisation = _without_normalisation(state)
    state = without_prefixes(state)
    unknown_layer = bool(state) and all(name.startswith("1.") for name in state)
    if unknown_layer:
        state = without_prefixes(_without_prefix(state, "1."))
    notes = _on_normalisation(path, architecture, normalisation, unknown_layer and normalisation is None)
    match architecture:
        case architectures.WideResNet():
            state, note = _without_unused_stage(state)
            notes += note
        case architectures.PreActResNet() if "linear.weight" in state and "bn.weight" not in state:
            raise CheckpointError(
                f"{path} is of a PreActResNet without the batch norm before its last layer, as in TRADES; "
                f"ours has it: {_ELSEWHERE}"
            )
        case architectures.TimmModel() | architectures.TorchvisionModel():
            state = {f"model.{name}": value for name, value in state.items()}
    return Plain(state, tuple(notes))


_OTHER_FLOATS = (torch.float16, torch.bfloat16, torch.float64)


def typed(state: State) -> State:
    """`state` in the types that our networks have: counts as whole numbers, weights in float32."""
    return {name: _typed(name, value) for name, value in state.items()}


def _typed(name: str, value: Tensor) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return value.round().long()
    return value.float() if value.dtype in _OTHER_FLOATS else value


def on_types(state: State) -> list[str]:
    """A note for each type other than float32 that weights in `state` have."""
    weights = [value.dtype for name, value in state.items() if not name.endswith("num_batches_tracked")]
    return [
        f"{weights.count(kind)} tensors were stored in {str(kind).removeprefix('torch.')} and made float32"
        for kind in _OTHER_FLOATS
        if kind in weights
    ]


def _without_unused_stage(state: State) -> tuple[State, list[str]]:
    """`state` without TRADES' sub_block1, if it is that: entry by entry of the shapes of block1.

    No forward pass of TRADES calls it. Its shapes confirm that: it takes the 16 channels of the stem, so it could
    not follow block1, which returns 16 * width.
    """

    def shapes(prefix: str) -> dict[str, torch.Size]:
        return {name.removeprefix(prefix): v.shape for name, v in state.items() if name.startswith(prefix)}

    if not shapes(_UNUSED) or shapes(_UNUSED) != shapes("block1."):
        return state, []
    rest = {name: value for name, value in state.items() if not name.startswith(_UNUSED)}
    return rest, [f"left out {len(state) - len(rest)} entries of {_UNUSED[:-1]}, a stage that TRADES never runs"]


# --- normalisation ----------------------------------------------------------------------------------------


def _without_normalisation(state: State) -> tuple[State, Normalisation | None]:
    """`state` without the constants of a normalisation, and these, if they are in it."""
    stems = {name.rpartition(".")[0] + "." * ("." in name) for name in state}
    for mean, std in ((stem + mean, stem + std) for stem in sorted(stems) for mean, std in _CONSTANTS):
        if mean in state and std in state and state[mean].numel() == state[std].numel() <= _MOST_CHANNELS:
            rest = {name: value for name, value in state.items() if name not in (mean, std)}
            return rest, Normalisation(_numbers(state[mean]), _numbers(state[std]))
    return state, None


def _numbers(values: Tensor) -> tuple[float, ...]:
    return tuple(float(f"{value:.7g}") for value in values.flatten().tolist())


def _on_normalisation(
    path: Path, architecture: architectures.Model, found: Normalisation | None, unknown_layer: bool
) -> list[str]:
    """Notes for a network that does not normalise; CheckpointError where ours would do it otherwise or twice."""
    ours = architectures.normalisation_of(architecture)
    if ours is not None and unknown_layer:
        raise CheckpointError(
            f"{path} has a layer before the network whose constants are not in the file, most likely a second "
            f"normalisation: {_ELSEWHERE}"
        )
    if ours is not None and found is not None and not _same(found, Normalisation(ours.mean, ours.std)):
        raise CheckpointError(
            f"the weights in {path} {show_normalisation(*found)}, the architecture says "
            f"{show_normalisation(ours.mean, ours.std)}; write the former into the architecture"
        )
    if ours is None and found is not None and (any(found.mean) or set(found.std) != {1.0}):
        said = json.dumps(found._asdict())
        return [f"these weights are for normalised pixels; evaluate them with 'model.preprocessing={said}'"]
    if ours is None and unknown_layer:
        return [
            "a layer came before this network whose constants are not in the file, most likely a normalisation; "
            'evaluate it with \'model.preprocessing={"mean": [...], "std": [...]}\''
        ]
    return []


def _same(a: Normalisation, b: Normalisation) -> bool:
    pairs = zip(a.mean + a.std, b.mean + b.std, strict=False)
    return len(a.mean) == len(b.mean) and all(abs(x - y) <= _SAME for x, y in pairs)


# --- sizes ------------------------------------------------------------------------------------------------


def sizes(state: State, architecture: architectures.Model) -> tuple[int, int]:
    """Channels and classes of the network that `state` is of; 3 and 10 where it lacks what would tell.

    They are read off the first weight whose shape depends on them.
    """
    own = architectures.normalisation_of(architecture)
    in_colour = isinstance(architecture, architectures.TorchvisionModel)  # which knows no other images
    channels = 3 if in_colour else len(own.mean) if own else 1
    small = _shapes(architecture, channels, 1)
    classes = _multiple(state, small, _shapes(architecture, channels, 2)) or 10
    if own is None and not in_colour:
        channels = _multiple(state, small, _shapes(architecture, 2, 1)) or 3
    return channels, classes


def _shapes(architecture: architectures.Model, channels: int, classes: int) -> dict[str, torch.Size]:
    with torch.device("meta"):
        network = models.build(architecture, channels=channels, classes=classes)
    return {name: parameter.shape for name, parameter in network.named_parameters()}


def _multiple(state: State, small: dict[str, torch.Size], large: dict[str, torch.Size]) -> int | None:
    """How many times as long an axis is in `state` as in `small`, where `large` has another length than that."""
    for name, shape in small.items():
        grown = [axis for axis, length in enumerate(shape) if length != large[name][axis]]
        if grown and name in state and state[name].ndim == len(shape):
            return state[name].shape[grown[0]] // shape[grown[0]]
    return None
