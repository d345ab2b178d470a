"""Judging a model in one process: clean accuracy, then attack after attack on the images that still stand.

A unit (dkl/units.py) is kept in the work directory once it is judged: a run that was killed goes on from there.
"""

from collections.abc import Iterator
from pathlib import Path

from dkl.datasets import load
from dkl.events import Adjusted, BatchDone, Finished, Progress
from dkl.judging import Evaluation
from dkl.protocols import Evaluate
from dkl.shelf import Shelf
from dkl.weights import LoadedModel


def evaluate(
    recipe: Evaluate, loaded: LoadedModel, workdir: Path, *, device: str, data_dir: Path
) -> Iterator[Progress | Adjusted | BatchDone | Finished]:
    """Judge `loaded` as `recipe` says; the last event is Finished. Stop by closing: a running attack ends.

    Units that `workdir` holds already are said again and not computed again. At the end `workdir` holds the
    evidence. The model is moved to `device`, and its parameters lose their gradients. Raises ValueError where
    recipe, model, data and work directory do not fit, MemoryError where the memory does not suffice for one image.
    """
    evaluation = Evaluation(recipe, loaded, load(recipe.dataset, "test", data_dir), device=device)
    shelf = Shelf(workdir, recipe=evaluation.fingerprint, checkpoint=evaluation.checkpoint)
    told = 0
    while True:
        units = evaluation.advance(shelf.read)
        yield from evaluation.events[told:]
        told = len(evaluation.events)
        if not units:
            break
        shelf.write((yield from evaluation.judge(units[0])))
    yield evaluation.way.arrived()
    yield Finished(result=evaluation.result(workdir))
