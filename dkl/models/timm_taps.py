"""Features of timm's networks, taken where timm says that their stages end.

Where a stage's last activation and last batch norm are, a first pass finds out; nothing is known by name.

Shapes: B batch, C channels, H, W the map, W features.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dkl.models.modes import eval_mode
from dkl.models.taps import Norm, Taps, no_features, norm_of

_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Hardswish, nn.Mish)


class _Stage(NamedTuple):
    """Names of modules of a network."""

    end: str
    """Whose output is the stage's."""
    activation: str | None
    """The one that gives that output; None where it is linear."""
    norm: str | None
    """The last batch norm before; None where there is none of as many channels."""


_KNOWN: WeakKeyDictionary[nn.Module, tuple[_Stage, ...]] = WeakKeyDictionary()
"""By network, the stem first."""


def is_of_timm(model: nn.Module) -> bool:
    """Whether `model` says where its stages end and which layer is its last, as timm's networks do."""
    return hasattr(model, "feature_info") and hasattr(model, "get_classifier")


def tapped(model: nn.Module, x_BCHW: Tensor) -> Taps:
    """The pass of one of timm's networks; ValueError where its features are no maps."""
    stages = _stages(model, x_BCHW)
    maps: list[Tensor] = []
    preacts: list[Tensor] = []
    before: dict[str, Tensor] = {}
    pooled: list[Tensor] = []

    def keep_input(name: str, value: Tensor) -> None:
        before[name] = value.clone()  # most activations are in place

    def keep_output(stage: _Stage, value: Tensor) -> None:
        maps.append(value)
        preacts.append(value if stage.activation is None else before[stage.activation])

    with _hooks() as hooks:
        for stage in stages:
            if stage.activation is not None:
                hooks.before(model.get_submodule(stage.activation), stage.activation, keep_input)
            hooks.after(model.get_submodule(stage.end), stage, keep_output)
        hooks.before(_classifier(model), None, lambda _, value: pooled.append(value.flatten(1)))
        logits_BK = model(x_BCHW)
    return Taps(logits_BK, tuple(maps), tuple(preacts[1:]), pooled[0])


def last_norms(model: nn.Module, x_BCHW: Tensor) -> tuple[Norm, ...]:
    """See `dkl.models.taps.Tapped`; ValueError where a stage has no batch norm."""
    found = []
    for stage in _stages(model, x_BCHW)[1:]:
        if stage.norm is None:
            raise ValueError(
                f"{type(model).__name__} has no batch norm at the end of {stage.end}, which the objective 'ofd' "
                "needs of a teacher; take 'at-kd', 'crd' or 'reviewkd', or another teacher"
            )
        norm = model.get_submodule(stage.norm)
        assert isinstance(norm, nn.BatchNorm2d)
        found.append(norm_of(norm))
    return tuple(found)


# --- finding out ------------------------------------------------------------------------------------------


def _stages(model: nn.Module, x_BCHW: Tensor) -> tuple[_Stage, ...]:
    if model not in _KNOWN:
        _KNOWN[model] = _found(model, x_BCHW)
    return _KNOWN[model]


@torch.no_grad()
def _found(model: nn.Module, x_BCHW: Tensor) -> tuple[_Stage, ...]:
    """What a pass of one image meets: which activation and which batch norm came last before each end."""
    ends = {str(info["module"]): None for info in model.feature_info if info.get("module")}  # type: ignore[union-attr]
    stages: list[_Stage] = []
    last_norm: list[tuple[str | None, int]] = [(None, 0)]
    last_activation: list[tuple[str, Tensor, tuple[str | None, int]]] = []

    def meet_norm(name: str, value: Tensor) -> None:
        last_norm[:] = [(name, value.shape[1])]

    def meet_activation(name: str, value: Tensor) -> None:
        last_activation[:] = [(name, value, last_norm[0])]

    def meet_end(name: str, value: Any) -> None:
        if not isinstance(value, Tensor) or value.ndim != 4:
            raise no_features(model)
        activation, (norm, channels) = None, last_norm[0]
        if last_activation and last_activation[0][1] is value:
            activation, _, (norm, channels) = last_activation[0]
        stages.append(_Stage(name, activation, norm if channels == value.shape[1] else None))

    with _hooks() as hooks, eval_mode(model):
        for name, module in model.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                hooks.before(module, name, meet_norm)
            if isinstance(module, _ACTIVATIONS):
                hooks.after(module, name, meet_activation)
        for name in ends:
            hooks.after(model.get_submodule(name), name, meet_end)
        model(x_BCHW[:1])
    if len(stages) < 2 or getattr(model, "output_fmt", None) == "NHWC":
        raise no_features(model)
    return tuple(stages)


def _classifier(model: Any) -> nn.Module:
    last = model.get_classifier()
    if not isinstance(last, nn.Module):
        raise no_features(model)
    return last


_Key = TypeVar("_Key")


class _Hooks:
    """Hooks on modules, each called with a key and what goes into the module or comes out."""

    def __init__(self) -> None:
        self.handles: list[RemovableHandle] = []

    def before(self, module: nn.Module, key: _Key, then: Callable[[_Key, Any], object]) -> None:
        def hook(_: nn.Module, inputs: Any) -> None:
            then(key, inputs[0])

        self.handles.append(module.register_forward_pre_hook(hook))

    def after(self, module: nn.Module, key: _Key, then: Callable[[_Key, Any], object]) -> None:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            then(key, output)

        self.handles.append(module.register_forward_hook(hook))


@contextmanager
def _hooks() -> Iterator[_Hooks]:
    """Hooks that are gone afterwards."""
    hooks = _Hooks()
    try:
        yield hooks
    finally:
        for handle in hooks.handles:
            handle.remove()
