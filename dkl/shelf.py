"""Judged units in files: what a run that was killed need not do again, and what workers tell each other."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from dkl.attacks.search import Precision
from dkl.events import Adjusted, BatchDone
from dkl.files import replacing
from dkl.tally import Finding
from dkl.units import Judged, Unit


class _About(BaseModel):
    """Which question a file answers, and where it was answered."""

    recipe: str
    checkpoint: str
    event: BatchDone
    found_sha256: str
    predicted_sha256: str | None = None
    """Absent in files of an older version, which have no predictions."""
    precision: Precision | None = None
    device: str | None = None
    adjusted: tuple[Adjusted, ...] = ()


def write_judged(path: Path, judged: Judged, *, recipe: str, checkpoint: str) -> None:
    """Keep `judged` in one file, which is complete or absent at every moment.

    `recipe` is the recipe's fingerprint, `checkpoint` the model's sha256.
    """
    event, found, precision, device, adjusted = judged
    about = _About(
        recipe=recipe,
        checkpoint=checkpoint,
        event=event,
        found_sha256=_sha256(found),
        predicted_sha256=None if found.predicted is None else _sha256_of(found.predicted),
        precision=precision,
        device=device,
        adjusted=adjusted,
    )
    arrays = {name: np.ascontiguousarray(values) for name, values in found._asdict().items() if values is not None}
    content = safetensors.numpy.save(arrays, metadata={"dkl": json.dumps(about.model_dump(mode="json"))})
    with replacing(path) as file:
        file.write(content)


def read_judged(path: Path, unit: Unit, *, recipe: str, checkpoint: str) -> Judged:
    """What `write_judged` kept about `unit`. ValueError where the file is damaged or answers another question."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            about = _About.model_validate_json((file.metadata() or {})["dkl"])
            names = set(Finding._fields) - (set() if about.predicted_sha256 else {"predicted"})
            found = Finding(**{"predicted": None} | {name: file.get_tensor(name) for name in names})
    except (ValidationError, safetensors.SafetensorError, KeyError) as error:
        raise ValueError(_damaged(path)) from error
    of_predicted = None if found.predicted is None else _sha256_of(found.predicted)
    if (about.found_sha256, about.predicted_sha256) != (_sha256(found), of_predicted):
        raise ValueError(_damaged(path))
    asked = (recipe, checkpoint, unit.stage, unit.batch)
    if (about.recipe, about.checkpoint, about.event.stage, about.event.batch) != asked or not np.array_equal(
        found.rows, unit.rows
    ):
        raise ValueError(
            f"{path} holds verdicts of another recipe or checkpoint; use another work directory or empty this one"
        )
    return Judged(about.event, found, about.precision, about.device, about.adjusted)


@dataclass(frozen=True)
class Shelf:
    """The judged units of one question in a work directory, a file for each."""

    workdir: Path
    recipe: str
    """The recipe's fingerprint."""
    checkpoint: str
    """Its sha256."""

    def read(self, unit: Unit) -> Judged | None:
        """What became of the unit, None if that is not known; ValueError as `read_judged`."""
        path = self._path(unit.stage, unit.batch)
        if not path.exists():
            return None
        return read_judged(path, unit, recipe=self.recipe, checkpoint=self.checkpoint)

    def write(self, judged: Judged) -> None:
        path = self._path(judged.event.stage, judged.event.batch)
        write_judged(path, judged, recipe=self.recipe, checkpoint=self.checkpoint)

    def _path(self, stage: int, batch: int) -> Path:
        return self.workdir / f"stage-{stage:03d}-batch-{batch:04d}.safetensors"


def _damaged(path: Path) -> str:
    return f"{path} is damaged; delete it to judge its images again"


def _sha256(found: Finding) -> str:
    """Of all but the predictions: the version before this one knows none, and reads what this one writes."""
    return _sha256_of(*(values for name, values in found._asdict().items() if name != "predicted"))


def _sha256_of(*arrays: NDArray[np.generic]) -> str:
    digest = hashlib.sha256()
    for values in arrays:
        digest.update(values.tobytes())
    return digest.hexdigest()
