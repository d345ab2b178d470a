"""Averages of weights over epochs or updates: what a recipe's result is made of."""

from collections.abc import Mapping
from typing import Any, Protocol, assert_never

import torch
from torch import Tensor, nn

from dkl.recipes import Averaging, EpochEMA, StepEMA
from dkl.tensors import State


class Average(Protocol):
    """A running average of a model's weights. It is kept in place: one copy of the weights, whatever happens."""

    def after_update(self, model: nn.Module, update: int, updates: int) -> None:
        """Take note of the weights after update number `update` (from 0) of `updates` in the whole run."""

    def after_epoch(self, model: nn.Module) -> None:
        """Take note of the state at the end of an epoch."""

    def state(self, model: nn.Module) -> State:
        """The averaged state, with the names and types of the model's own; the model's, if nothing was noted."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], device: str) -> None: ...


def make_average(averaging: Averaging | None) -> Average | None:
    """The average that a recipe asks for; None where the weights themselves are the result."""
    match averaging:
        case None:
            return None
        case EpochEMA():
            return EpochAverage(averaging.decay)
        case StepEMA():
            return StepAverage(averaging)
        case _:
            assert_never(averaging)


class EpochAverage:
    """average <- decay * average + (1 - decay) * state; all entries take part, batch-norm statistics too.

    The first epoch's state is taken as it is. Integers are averaged as float64, and rounded in the end.

    Source: the average over checkpoints of arXiv:2305.13948, with decay 0.9.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: State = {}

    def after_update(self, model: nn.Module, update: int, updates: int) -> None:
        pass  # only epochs count

    @torch.no_grad()
    def after_epoch(self, model: nn.Module) -> None:
        current = {name: _as_floating(value) for name, value in model.state_dict().items()}
        if not self.average:
            self.average = {name: value.clone() for name, value in current.items()}
            return
        for name, value in current.items():
            self.average[name].lerp_(value, 1 - self.decay)

    def state(self, model: nn.Module) -> State:
        own = model.state_dict()
        average = self.average or own
        return {name: _like(average[name], value) for name, value in own.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average}

    def load_state_dict(self, state: dict[str, Any], device: str) -> None:
        self.average = _moved(state["average"], device)


class StepAverage:
    """average <- d * average + (1 - d) * weights after every update.

        d = 0 before the start, then min(decay, (1 + k) / (10 + k)),      k = updates since the start, from 0

    Batch-norm statistics are averaged along, or are those of the model itself, as the recipe says.

    Source: DM-AT, arXiv:2302.04638, after Gowal et al., arXiv:2010.03593.
    """

    def __init__(self, averaging: StepEMA) -> None:
        self.averaging = averaging
        self.average: State = {}

    def decay_of(self, update: int, updates: int) -> float:
        """The decay d of update number `update` (from 0) of `updates`."""
        since = update + 1 - round(self.averaging.start * updates)
        if since < 0:
            return 0.0
        return (
            min(self.averaging.decay, (1 + since) / (10 + since)) if self.averaging.ramp else self.averaging.decay
        )

    @torch.no_grad()
    def after_update(self, model: nn.Module, update: int, updates: int) -> None:
        current = dict(model.named_parameters())
        if self.averaging.statistics == "averaged":
            current |= {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}
        if not self.average:
            self.average = {name: value.detach().clone() for name, value in current.items()}
            return
        share = 1 - self.decay_of(update, updates)
        torch._foreach_lerp_([self.average[name] for name in current], list(current.values()), share)

    def after_epoch(self, model: nn.Module) -> None:
        pass  # every update counted already

    def state(self, model: nn.Module) -> State:
        return {name: self.average.get(name, value) for name, value in model.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average}

    def load_state_dict(self, state: dict[str, Any], device: str) -> None:
        self.average = _moved(state["average"], device)


def _moved(state: Mapping[str, Tensor], device: str) -> State:
    return {name: value.to(device) for name, value in state.items()}


def _as_floating(value: Tensor) -> Tensor:
    return value if value.is_floating_point() else value.double()


def _like(averaged: Tensor, own: Tensor) -> Tensor:
    return averaged if own.is_floating_point() else averaged.round().to(own.dtype)
