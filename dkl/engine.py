"""Running a recipe: an iterator of events, whatever the recipe is."""

import platform
import re
from collections.abc import Callable, Generator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import assert_never

import torch

from dkl.evaluate import evaluate
from dkl.events import Event, Started
from dkl.recipes import Checkpoint, Evaluate, JobResult, Train
from dkl.train import train
from dkl.weights import CheckpointError, LoadedModel, load_checkpoint

Fetch = Callable[[JobResult | Checkpoint], Path]
"""Where the file of a checkpoint lies, after getting it there if need be."""


def run(
    recipe: Train | Evaluate, workdir: Path, *, device: str, data_dir: Path, fetch: Fetch
) -> Generator[Event, None, None]:
    """Execute `recipe`, yielding events; the first is Started, the last is Finished. Stop by closing the iterator.

    Whatever an earlier, interrupted run of the same recipe left in `workdir` is gone on with, to the same result.
    A trained model is `workdir / "model.safetensors"`. `device` is what `pick_device` returns. Run one recipe per
    process at a time: torch's random generators are shared (and the caller's own whenever an event is out).

    Raises DatasetError, CheckpointError or ValueError, with a sentence for the user, where recipe, data, model and
    work directory do not fit; FloatingPointError if training diverges.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    yield Started(device=_device_name(device), versions=_versions(recipe), resumed=_has_remains(workdir))
    match recipe:
        case Train():
            yield from train(recipe, workdir, device=device, data_dir=data_dir)
        case Evaluate():
            loaded = _load(recipe.model, fetch)
            yield from evaluate(recipe, loaded, workdir, device=device, data_dir=data_dir)
        case _:
            assert_never(recipe)


def pick_device(name: str = "auto") -> str:
    """The torch device called `name`: cpu, cuda, cuda:N, or auto: a GPU if there is one. ValueError if absent."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    match = re.fullmatch(r"cpu|cuda(:(?P<index>\d+))?", name)
    if match is None:
        raise ValueError(f"unknown device {name!r}; choose from auto, cpu, cuda, cuda:N")
    found = torch.cuda.device_count()
    if name != "cpu" and int(match["index"] or 0) >= found:
        raise ValueError(f"there is no device {name!r}: torch sees {found} GPUs; choose auto or cpu")
    return name


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def _versions(recipe: Train | Evaluate) -> dict[str, str]:
    packages = ["torch", "numpy", "dkl-bench", *(["pyautoattack"] if isinstance(recipe, Evaluate) else [])]
    return {"python": platform.python_version(), **{package: _version(package) for package in packages}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"  # a source tree that was put on the path


def _has_remains(workdir: Path) -> bool:
    return (workdir / "last.pt").exists() or any(workdir.glob("chunk-*.json"))


def _load(source: JobResult | Checkpoint, fetch: Fetch) -> LoadedModel:
    path = fetch(source)
    loaded = load_checkpoint(path)
    if isinstance(source, Checkpoint) and loaded.sha256 != source.checkpoint:
        raise CheckpointError(f"{path} has sha256 {loaded.sha256}, the recipe asks for {source.checkpoint}")
    return loaded
