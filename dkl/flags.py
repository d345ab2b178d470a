"""Per image, whether an evaluated model stood: a bit each, as results carry them. No torch here."""

import base64

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict

from dkl.documents import Sha256


class Flags(BaseModel):
    """What became of each image of an evaluation, in ascending order of the images' positions in the test split.

    Two evaluations saw the same images exactly when their `data_sha256` are equal.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    data_sha256: Sha256
    """Of the images and labels that were used."""
    clean: str
    """Classified correctly without an attack, with finite logits: base64 of one bit per image, the first one the
    highest of its byte."""
    robust: str
    """Classified correctly, and broken by no attack at threat.eps; in the same form."""


def pack(flags: ArrayLike) -> str:
    """Flags (N,) in base64: a bit each, the first one the highest of its byte, the last byte filled with zeros."""
    return base64.b64encode(np.packbits(np.asarray(flags, np.bool_)).tobytes()).decode()


def unpack(text: str, count: int) -> NDArray[np.bool_]:
    """The `count` flags that `pack` made `text` of; ValueError where it holds not exactly so many."""
    try:
        packed = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    except ValueError as error:
        raise ValueError(f"flags are base64, found {text[:20]!r}: {error}") from None
    bits = np.unpackbits(packed)
    if len(packed) != -(-count // 8) or bits[count:].any():
        raise ValueError(f"{count} flags take {-(-count // 8)} bytes ending in zeros, found {len(packed)} bytes")
    return bits[:count].view(np.bool_)
