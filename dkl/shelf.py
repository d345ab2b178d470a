"""The finished batches of an evaluation in its work directory: what a run that was killed need not do again."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from pydantic import BaseModel, ValidationError

from dkl.events import BatchDone
from dkl.files import replacing
from dkl.tally import Finding, Rows


class _About(BaseModel):
    """Which question a file answers."""

    recipe: str
    checkpoint: str
    event: BatchDone
    found_sha256: str


@dataclass(frozen=True)
class Shelf:
    """One file per batch. At every moment it is complete or absent."""

    workdir: Path
    recipe: str
    """The recipe's fingerprint."""
    checkpoint: str
    """Its sha256."""

    def read(self, stage: int, batch: int, rows: Rows) -> tuple[BatchDone, Finding] | None:
        """The finished batch, None if there is none; ValueError if it is not about `rows` or another question."""
        path = self._path(stage, batch)
        if not path.exists():
            return None
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                about = _About.model_validate_json((file.metadata() or {})["dkl"])
                found = Finding(**{name: file.get_tensor(name) for name in Finding._fields})
        except (ValidationError, safetensors.SafetensorError, KeyError) as error:
            raise ValueError(_damaged(path)) from error
        if about.found_sha256 != _sha256(found):
            raise ValueError(_damaged(path))
        if (about.recipe, about.checkpoint) != (self.recipe, self.checkpoint) or not np.array_equal(
            found.rows, rows
        ):
            raise ValueError(
                f"{path} holds verdicts of another recipe or checkpoint; "
                "use another work directory or empty this one"
            )
        return about.event, found

    def write(self, event: BatchDone, found: Finding) -> None:
        about = _About(recipe=self.recipe, checkpoint=self.checkpoint, event=event, found_sha256=_sha256(found))
        arrays = {name: np.ascontiguousarray(values) for name, values in found._asdict().items()}
        content = safetensors.numpy.save(arrays, metadata={"dkl": json.dumps(about.model_dump(mode="json"))})
        with replacing(self._path(event.stage, event.batch)) as file:
            file.write(content)

    def _path(self, stage: int, batch: int) -> Path:
        return self.workdir / f"stage-{stage:03d}-batch-{batch:04d}.safetensors"


def _damaged(path: Path) -> str:
    return f"{path} is damaged; delete it to judge its images again"


def _sha256(found: Finding) -> str:
    digest = hashlib.sha256()
    for values in found:
        digest.update(values.tobytes())
    return digest.hexdigest()
