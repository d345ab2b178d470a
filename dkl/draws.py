"""Random numbers that follow from a key alone, so that any batch can be made without the ones before it."""

from enum import IntEnum
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


class Draw(IntEnum):
    """What random numbers are for: the first number of a key, so that no two uses share a stream."""

    ORDER = 1
    AUGMENTATION = 2
    ATTACK_START = 3
    VALIDATION_START = 4
    SECOND_VIEW = 5
    GENERATED = 6
    MIXTURE = 7
    CROP = 8
    NEGATIVES = 9
    STRATEGY = 10
    REWARD_START = 11


def generator(device: str | torch.device, *key: int) -> torch.Generator:
    """A generator on `device` whose numbers follow from `key` alone."""
    seed = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(seed))


@lru_cache(maxsize=2)
def order(count: int, *key: int) -> Tensor:
    """A permutation of `count` images, drawn on the CPU: an epoch's order is the same on every device."""
    return torch.randperm(count, generator=generator("cpu", Draw.ORDER, *key))
