"""What an attack hands out after every step, and gets back. Attacks are generators:

    keep = yield Look(...)        # the images they have just tried; then the rows to go on with, None for all

They know nothing of verdicts, batches or clocks. Who drives them (dkl/attacks/hunt.py) decides what counts, drops
an image the moment it is broken, and may stop at any look by closing the generator.
"""

from collections.abc import Generator
from dataclasses import fields, replace
from typing import NamedTuple, TypeVar

from torch import Tensor


class Look(NamedTuple):
    """One try on every image. B images of n pixels."""

    x_adv: Tensor
    """What was tried; (B, n)."""
    margin: Tensor
    """z_y - max_{k != y} z_k; (B,). Not above 0: it looks misclassified."""
    step: int
    """Steps or queries so far; 0 for the start."""
    inside: Tensor | None = None
    """Which of them lie in the ball, where an attack goes out of it; bool (B,). None: all."""
    flat: Tensor | None = None
    """Where the gradient is exactly zero, at the start; bool (B,)."""


Looks = Generator[Look, Tensor | None, None]

S = TypeVar("S")


def margin(logits_BK: Tensor, y_B: Tensor) -> Tensor:
    """z_y - max_{k != y} z_k, shape (B,)."""
    own_B1 = logits_BK.gather(1, y_B[:, None])
    others_BK = logits_BK.scatter(1, y_B[:, None], float("-inf"))
    return own_B1.squeeze(1) - others_BK.amax(dim=1)


def take(state: S, keep: Tensor | None) -> S:
    """The rows `keep` of every tensor of the dataclass `state`; `state` itself for None."""
    if keep is None:
        return state
    tensors = {f.name: getattr(state, f.name) for f in fields(state) if isinstance(getattr(state, f.name), Tensor)}
    return replace(state, **{name: value[keep] for name, value in tensors.items()})
