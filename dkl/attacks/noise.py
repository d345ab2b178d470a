"""Random numbers that belong to an image: the same whatever else is in the batch, on any device, in any order.

Numbers come from Philox4x32-10, a counter-based generator: a number is a function of a key and of where it stands,
no state is carried along. The key is the evaluation's seed; the counter names the image, what the number is for,
the step and the place. Integers and uniform numbers are equal on all devices; normal ones up to the rounding of
the device's logarithm and cosine.

Source: Salmon, Moraes, Dror and Shaw, Parallel random numbers: as easy as 1, 2, 3, SC 2011.
Shapes: B images, n numbers per image.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


@dataclass(frozen=True)
class Noise:
    """The random numbers of one attack's run on some images."""

    seed: int
    """Of the evaluation; below 2**63."""
    images: Tensor
    """The images' positions in the data set, int64 (B,)."""
    use: Tensor
    """What each image's numbers are for: attack, restart and target, below 2**32; int64 (B,). No two uses share
    numbers."""

    def bits(self, step: int, n: int) -> Tensor:
        """Random integers in [0, 2**32), int64 (B, n)."""
        blocks = -(-n // 4)
        place = torch.arange(blocks, device=self.images.device)
        words = philox(
            (
                place[None, :],
                torch.full_like(place[None, :], step),
                self.images[:, None] & _LOW,
                self.use[:, None],
            ),
            (self.seed & _LOW, self.seed >> 32),
        )
        return torch.stack(words, dim=2).flatten(1)[:, :n]

    def uniform(self, step: int, n: int) -> Tensor:
        """Numbers in [0, 1), float32 (B, n): multiples of 2**-24."""
        return (self.bits(step, n) >> 8).float() * 2.0**-24

    def sign(self, step: int, n: int) -> Tensor:
        """-1 or 1 with equal probability, float32 (B, n)."""
        return (self.bits(step, n) >> 31).float() * 2 - 1

    def normal(self, step: int, n: int) -> Tensor:
        """Standard normal numbers, float32 (B, n), after Box and Muller."""
        pairs = -(-n // 2)
        radius_angle = self.uniform(step, 2 * pairs)
        radius = (-2 * (1 - radius_angle[:, :pairs]).log()).sqrt()  # 1 - u is in (0, 1]
        angle = 2 * math.pi * radius_angle[:, pairs:]
        return torch.cat((radius * angle.cos(), radius * angle.sin()), dim=1)[:, :n]

    def take(self, keep: Tensor) -> "Noise":
        """The numbers of some of the images: `keep` are rows."""
        return Noise(self.seed, self.images[keep], self.use[keep])


Word = Tensor | int


def philox(counter: tuple[Word, Word, Word, Word], key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10: four 32-bit words from a counter of four and a key of two; int64 tensors that broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # Products of 32-bit words fill 64 bits; in int64 they wrap, and masking after the shift undoes the sign.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) & _LOW) ^ c1 ^ k0, p1 & _LOW, ((p0 >> 32) & _LOW) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3
