"""What changes from epoch to epoch: learning rate, momentum and radius. Epochs count from 1. No torch here."""

import math
from typing import assert_never

from dkl.documents import ThreatModel
from dkl.objectives import PGD
from dkl.recipes import SGD, Cosine, OneCycle, Steps, WarmCosine

_RISE_FROM, _FALL_TO = 25, 1e4
_MOMENTUM_LOW, _MOMENTUM_HIGH = 0.85, 0.95


def learning_rate(optimizer: SGD, epoch: int, epochs: int) -> float:
    """The learning rate of all updates of `epoch`."""
    lr = optimizer.lr
    match optimizer.schedule:
        case Cosine(from_full=True):
            return lr * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / epochs))
        case Cosine():
            return lr * 0.5 * (1 + math.cos(math.pi * epoch / (epochs + 1)))
        case WarmCosine(warmup=warmup) if epoch <= warmup:
            return lr * epoch / warmup
        case WarmCosine(warmup=warmup):
            return lr * 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup + 1)))
        case Steps(first_epoch=share) if epoch == 1 and share != 1:
            return lr * share
        case Steps(epochs=decays):
            return lr * 0.1 ** sum(epoch >= decay for decay in decays)
        case OneCycle() as cycle:
            start = lr / _RISE_FROM
            return _one_cycle(cycle, epoch, epochs, start, lr, start / _FALL_TO)
        case _:
            assert_never(optimizer.schedule)


def momentum(optimizer: SGD, epoch: int, epochs: int) -> float:
    """The momentum of all updates of `epoch`; only OneCycle changes it."""
    if isinstance(optimizer.schedule, OneCycle):
        return _one_cycle(optimizer.schedule, epoch, epochs, _MOMENTUM_HIGH, _MOMENTUM_LOW, _MOMENTUM_HIGH)
    return optimizer.momentum


def radius(attack: PGD, threat: ThreatModel, epoch: int, epochs: int) -> ThreatModel:
    """The threat model that `epoch` trains against."""
    if attack.eps_schedule == "constant":
        return threat
    return ThreatModel(norm=threat.norm, eps=threat.eps * epoch / epochs)


def _one_cycle(cycle: OneCycle, epoch: int, epochs: int, first: float, middle: float, last: float) -> float:
    """From `first` to `middle` in half a cosine, then to `last` in another, as torch's OneCycleLR places them."""
    done, turn, end = epoch - 1, max(cycle.rise * epochs - 1, 0.0), epochs - 1
    if done <= turn:
        start, goal, share = first, middle, done / turn if turn > 0 else 1.0
    else:
        start, goal, share = middle, last, (done - turn) / (end - turn)
    return goal + (start - goal) / 2 * (1 + math.cos(math.pi * share))
