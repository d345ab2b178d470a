"""Running a recipe: an iterator of events, whatever the recipe is."""

import re
from collections.abc import Generator
from pathlib import Path
from typing import assert_never

import torch

from dkl.corruptions import evaluate_corruptions
from dkl.datasets import load
from dkl.distill import distill
from dkl.distributed import run_distributed
from dkl.evaluate import evaluate
from dkl.events import Event, Started
from dkl.importing import run_import
from dkl.imports import Import
from dkl.judging import Evaluation
from dkl.protocols import Evaluate, EvaluateCorruptions
from dkl.provenance import commit, device_name, versions
from dkl.recipes import Distill, Recipe, Train
from dkl.sources import Fetch, load_model, load_source
from dkl.train import train


def run(
    recipe: Recipe,
    workdir: Path,
    *,
    device: str,
    data_dir: Path,
    fetch: Fetch,
    allow_functions: bool = False,
) -> Generator[Event, None, None]:
    """Execute `recipe`, yielding events; the first is Started, the last is Finished. Stop by closing the iterator.

    Whatever an earlier, interrupted run of the same recipe left in `workdir` is gone on with, to the same result.
    A trained model is `workdir / "model.safetensors"`. `device` is what `pick_device` returns. Run one recipe per
    process at a time: torch's random generators are shared (and the caller's own whenever an event is out).
    `fetch` says where a stored checkpoint lies. `allow_functions` lets a recipe name Python code that makes the
    model: for recipes of whoever owns this machine only.

    Raises DatasetError, CheckpointError or ValueError, with a sentence for the user, where recipe, data, model and
    work directory do not fit; FloatingPointError if training diverges; MemoryError where not even one image fits.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    yield started(recipe, device, resumed=_has_remains(workdir))
    match recipe:
        case Train() if recipe.processes > 1:
            yield from run_distributed(recipe, workdir, device=device, data_dir=data_dir)
        case Train():
            yield from train(recipe, workdir, device=device, data_dir=data_dir)
        case Distill():
            teacher = load_source(
                recipe.teacher, recipe.dataset, fetch=fetch, data_dir=data_dir, allow_functions=allow_functions
            )
            yield from distill(recipe, teacher, workdir, device=device, data_dir=data_dir)
        case Import():
            yield from run_import(recipe, workdir, fetch=fetch)
        case Evaluate():
            loaded = load_model(recipe, fetch=fetch, data_dir=data_dir, allow_functions=allow_functions)
            yield from evaluate(recipe, loaded, workdir, device=device, data_dir=data_dir)
        case EvaluateCorruptions():
            loaded = load_model(recipe, fetch=fetch, data_dir=data_dir, allow_functions=allow_functions)
            yield from evaluate_corruptions(recipe, loaded, workdir, device=device, data_dir=data_dir)
        case _:
            assert_never(recipe)


def started(recipe: Recipe, device: str, *, resumed: bool) -> Started:
    """What is said first. `resumed`: there is something to go on from."""
    return Started(device=device_name(device), versions=versions(recipe), commit=commit(), resumed=resumed)


def open_evaluation(
    recipe: Evaluate, *, device: str, data_dir: Path, fetch: Fetch, allow_functions: bool = False
) -> Evaluation:
    """An evaluation to judge unit by unit, beside any number of others who do so; `run` does it alone.

    Arguments, and what it raises, as `run`. MemoryError where model or images do not fit.
    """
    loaded = load_model(recipe, fetch=fetch, data_dir=data_dir, allow_functions=allow_functions)
    return Evaluation(recipe, loaded, load(recipe.dataset, "test", data_dir), device=device)


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


def _has_remains(workdir: Path) -> bool:
    patterns = ("last.pt", "stage-*.safetensors", "corruption-*.json")
    return any(any(workdir.glob(pattern)) for pattern in patterns)
