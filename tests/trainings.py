"""Whole trainings in this process on small data: running one, and what it said."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dkl import recipes
from dkl.events import Epoch, Event, Finished, Progress
from dkl.train import train

_TIMES = ("seconds", "images_per_second", "eta_seconds", "provenance")


def write_tiny(folder: Path, images: int) -> Path:
    """npz:tiny: so many training and 10 test images of 8 x 8 in 3 classes, told apart by brightness."""
    random = np.random.default_rng(0)
    for split, count in (("train", images), ("test", 10)):
        label = np.arange(count) % 3
        image = (random.integers(0, 120, (count, 8, 8, 1)) + 60 * label[:, None, None, None]).astype(np.uint8)
        np.savez(folder / f"tiny_{split}.npz", image=image, label=label)
    return folder


def run(recipe: recipes.Train, workdir: Path, data_dir: Path) -> Iterator[Event]:
    workdir.mkdir(exist_ok=True)
    return train(recipe, workdir, device="cpu", data_dir=data_dir)


def facts(events: Iterable[Event]) -> list[dict[str, Any]]:
    """All that is said for good, less the time it took."""
    said = [e.result if isinstance(e, Finished) else e for e in events if not isinstance(e, Progress)]
    return [{name: value for name, value in fact.model_dump().items() if name not in _TIMES} for fact in said]


def epochs_of(events: Iterable[Event]) -> list[Epoch]:
    return [event for event in events if isinstance(event, Epoch)]
