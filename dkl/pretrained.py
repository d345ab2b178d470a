"""Pretrained models of the timm library, with weights that we fetch ourselves and timm's own preprocessing."""

import types
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from dkl.downloads import NotThereError, fetched
from dkl.preprocessing import Geometry, Preprocessed
from dkl.weights import CheckpointError, LoadedModel

_HUB = "https://huggingface.co"
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""What timm keeps on the hub, the readable format first."""


class PretrainedError(ValueError):
    """timm is missing, or has no such pretrained model; the message says what to do."""


def load(name: str, weights_dir: Path) -> LoadedModel:
    """timm's pretrained model called `name`; its weights are kept in `weights_dir`.

    Raises PretrainedError, DownloadError or CheckpointError, each with a sentence for the user.
    """
    timm = _timm()
    facts = _facts(timm, name)
    path, sha256 = _weights(facts, weights_dir / f"{facts.architecture}.{facts.tag or 'default'}")
    try:
        with torch.random.fork_rng(devices=[]):
            network = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    except RuntimeError as error:
        raise CheckpointError(f"timm cannot put {path} into {name}: {str(error).splitlines()[0]}") from error
    channels, _, side = facts.input_size
    model = Preprocessed(
        network,
        facts.mean,
        facts.std,
        Geometry(
            resize=round(side / facts.crop_pct),
            crop=side,
            interpolation="bicubic" if facts.interpolation == "bicubic" else "bilinear",
        ),
    )
    return LoadedModel(
        model=model.eval(),
        architecture=name,
        channels=channels,
        classes=network.num_classes,
        dataset=None,
        sha256=sha256,
        preprocessing=model.description,
        notes=(
            "attacks act on the images as they are in the data set, before resizing and cropping; images of "
            f"{side} x {side} pixels are neither resized nor cropped",
        ),
    )


def _timm() -> types.ModuleType:
    try:
        return import_module("timm")
    except ImportError:
        raise PretrainedError(
            "timm models need the package timm: pip install 'dkl-bench[worker]', or pip install timm"
        ) from None


def _facts(timm: Any, name: str) -> Any:
    """timm's description of the pretrained weights."""
    try:
        facts = timm.get_pretrained_cfg(name)
    except RuntimeError:
        facts = None  # the architecture is known, the tag is not
    if facts is None or not (facts.url or facts.hf_hub_id):
        known = timm.list_models(pretrained=True) if "." in name else timm.list_models()
        close = get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else "see timm.list_models(pretrained=True)"
        raise PretrainedError(f"timm has no pretrained model {name!r}; {hint}")
    return facts


def _weights(facts: Any, folder: Path) -> tuple[Path, str]:
    """The file of weights and its sha256: what is there, else from the hub, else from the older address."""
    names = [facts.hf_hub_filename] if facts.hf_hub_filename else list(_HUB_FILES)
    if not facts.hf_hub_id:
        path = folder / facts.url.rpartition("/")[2]
        return path, fetched(path, facts.url)
    for name in sorted(names, key=lambda name: not (folder / name).exists()):
        try:
            return folder / name, fetched(folder / name, f"{_HUB}/{facts.hf_hub_id}/resolve/main/{name}")
        except NotThereError as error:
            refused = error
    raise refused
