"""What an attack has achieved on a batch of images, whoever ran it."""

from dataclasses import dataclass

from torch import Tensor

UNTARGETED = -1


@dataclass(frozen=True)
class Outcome:
    """One entry per image of the batch, shape (B,) unless said otherwise. -1 means: not known, or not broken."""

    x_adv: Tensor
    """(B, C, H, W); adversarial where `broken`, else unspecified."""
    broken: Tensor
    """Confirmed by the verifier."""
    predicted: Tensor
    """Where `broken`, the class that the verifier saw predicted for x_adv."""
    restart: Tensor
    """In which restart the image fell."""
    target: Tensor
    """The class that was aimed at; UNTARGETED for none."""
    step: Tensor
    """After how many steps or queries of that run."""
    margin: Tensor
    """The smallest margin z_y - max_{k != y} z_k that the search saw inside the ball; infinite where unknown."""
    flat: Tensor
    """Where a gradient was exactly zero."""
    forwards: Tensor
    backwards: Tensor
    """Passes that were spent on each image."""
    rejected: int
    """Images that the search took for broken, the verifier never, and that stand."""
    inadmissible: int
    """Of these, how many claims were outside the ball or the pixel range, or had logits that are not finite: no
    rounding of the search explains that."""
    finite: bool
    """Whether all logits were finite numbers."""
