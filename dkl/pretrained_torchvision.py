"""Pretrained classifiers of the torchvision library: its own code builds them, the weights are read by ours."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from dkl.downloads import DownloadError, fetched
from dkl.foreign import find_state, read_entries
from dkl.preprocessing import Geometry, Preprocessed
from dkl.pretrained import PretrainedError
from dkl.tensors import State
from dkl.weights import CheckpointError, LoadedModel

_BEGINNING = re.compile(r"-([0-9a-f]{8,64})\.")
"""Of a file's sha256, in its name: resnet18-f37072fd.pth."""


def load(name: str, weights_dir: Path) -> LoadedModel:
    """torchvision's model with the weights `name`, such as resnet18.IMAGENET1K_V1, after its own preprocessing.

    The file is taken from torch's cache (TORCH_HOME) where it is there, else kept in `weights_dir`. Raises
    PretrainedError, DownloadError or CheckpointError, each with a sentence for the user.
    """
    from torchvision.models import get_model

    architecture, _, _ = name.partition(".")
    weights = _weights(name)
    path, sha256 = _file(weights.url, weights_dir)
    state = find_state(path, read_entries(path))
    try:
        with torch.random.fork_rng(devices=[]), _giving(weights, state):
            network = get_model(architecture, weights=weights)
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise CheckpointError(f"torchvision cannot put {path} into {name}: {first}") from error
    does = weights.transforms()
    (side,) = does.crop_size
    geometry = Geometry(
        resize=does.resize_size[0],
        crop=side,
        interpolation="bicubic" if does.interpolation.value == "bicubic" else "bilinear",
    )
    model = Preprocessed(network, tuple(does.mean), tuple(does.std), geometry)
    return LoadedModel(
        model=model.eval(),
        architecture=name,
        channels=3,
        classes=len(weights.meta["categories"]),
        dataset=None,
        sha256=sha256,
        preprocessing=model.description,
        notes=(
            "attacks act on the images as they are in the data set, before resizing and cropping; images of "
            f"{side} x {side} pixels are neither resized nor cropped",
        ),
    )


def _weights(name: str) -> Any:
    """torchvision's description of the weights; PretrainedError with the closest names where it has none."""
    from torchvision import models

    architecture, _, tag = name.partition(".")
    known = models.list_models(module=models)
    if architecture not in known:
        close = get_close_matches(architecture, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else "see torchvision.models.list_models()"
        raise PretrainedError(f"torchvision has no classifier {architecture!r}; {hint}")
    offered = models.get_model_weights(architecture)
    if tag not in offered.__members__ or tag == "DEFAULT":
        names = ", ".join(f"{architecture}.{weights.name}" for weights in offered)
        raise PretrainedError(f"torchvision has no weights {name!r}; it has {names or 'none of this network'}")
    return offered[tag]


def _file(url: str, weights_dir: Path) -> tuple[Path, str]:
    """The file of weights and its sha256, which begins as its name says."""
    filename = url.rpartition("/")[2]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / filename
    if cached.is_file():
        path = cached
        with cached.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    else:
        path = weights_dir / filename
        sha256 = fetched(path, url)
    named = _BEGINNING.search(filename)
    if named and not sha256.startswith(named[1]):
        raise DownloadError(
            f"{path} has the sha256 {sha256}, which should begin with {named[1]} as its name says; delete it to "
            "fetch it again"
        )
    return path, sha256


@contextmanager
def _giving(weights: Any, state: State) -> Iterator[None]:
    """Inside, torchvision's builders get `state` as these weights, instead of fetching and unpickling a file."""
    weights.get_state_dict = lambda *_, **__: state
    try:
        yield
    finally:
        del weights.get_state_dict
