"""The finished passes of an evaluation under corruptions in its work directory: what need not be done again.

A pass is all test images under one corruption at one severity.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from dkl.events import Adjusted, CorruptionDone
from dkl.files import replacing
from dkl.protocols import Corruption, Severity

Flags = NDArray[np.bool_]
"""(N,): per image, whether it was classified correctly, with finite logits."""


class Pass(NamedTuple):
    """All images under one corruption at one severity."""

    corruption: Corruption | Literal["clean"]
    severity: Severity | Literal[0]
    """0 for the clean pass."""

    @property
    def title(self) -> str:
        """For people: "glass blur, severity 3"."""
        severity = f", severity {self.severity}" if self.severity else ""
        return f"{self.corruption.replace('_', ' ')}{severity}"


class Passed(NamedTuple):
    """What a pass found."""

    event: CorruptionDone
    right: Flags
    images_sha256: str
    """Of the images that were shown, uint8 (N, H, W, C)."""
    adjusted: tuple[Adjusted, ...]
    """How memory was made to suffice."""


class _Stored(BaseModel):
    """A file in the work directory: what a pass found, and of which question."""

    recipe: str
    checkpoint: str
    event: CorruptionDone
    right: str
    """One character per image: "1" right, "0" wrong."""
    images_sha256: str | None = None
    """Absent in files of an older version."""
    adjusted: tuple[Adjusted, ...] = ()


@dataclass(frozen=True)
class PassShelf:
    """The finished passes of one question in a work directory."""

    workdir: Path
    recipe: str
    """Its fingerprint."""
    checkpoint: str
    """Its sha256."""

    def read(self, which: Pass) -> Passed | None:
        """The finished pass, None if there is none; ValueError if it answers another question."""
        path = self._path(which)
        if not path.exists():
            return None
        try:
            stored = _Stored.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise ValueError(f"{path} is damaged; delete it to judge its images again") from error
        if (stored.recipe, stored.checkpoint) != (self.recipe, self.checkpoint):
            raise ValueError(
                f"{path} holds answers to another recipe or of another checkpoint; use another work directory or "
                "empty this one"
            )
        if stored.images_sha256 is None:
            return None  # which images it is about cannot be told; seconds, to judge them again
        right = np.array([flag == "1" for flag in stored.right])
        return Passed(stored.event, right, stored.images_sha256, stored.adjusted)

    def write(self, which: Pass, passed: Passed) -> None:
        stored = _Stored(
            recipe=self.recipe,
            checkpoint=self.checkpoint,
            event=passed.event,
            right="".join("1" if flag else "0" for flag in passed.right),
            images_sha256=passed.images_sha256,
            adjusted=passed.adjusted,
        )
        with replacing(self._path(which)) as file:
            file.write(stored.model_dump_json().encode())

    def _path(self, which: Pass) -> Path:
        return self.workdir / f"corruption-{which.corruption}-{which.severity}.json"
