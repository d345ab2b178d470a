"""From a model source to a network that can be judged: where `dkl.protocols` says which model, this gets it."""

import hashlib
import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, assert_never

import torch
from torch import Tensor, nn

from dkl import pretrained, pretrained_torchvision, zoo
from dkl.batches import as_pixels, on_device
from dkl.datasets import Arrays, load
from dkl.documents import Normalisation
from dkl.preprocessing import Preprocessed
from dkl.protocols import Checkpoint, Function, JobResult, Judgement, ModelSource, Timm, Torchvision, Zoo
from dkl.weights import CheckpointError, LoadedModel, load_checkpoint

Fetch = Callable[[JobResult | Checkpoint], Path]
"""Where the file of a checkpoint lies, after getting it there if need be."""


class FunctionError(ValueError):
    """The function cannot be called here, or returns no model; the message says what to do."""


def load_model(recipe: Judgement, *, fetch: Fetch, data_dir: Path, allow_functions: bool) -> LoadedModel:
    """The network that `recipe` judges. Downloaded weights are kept in `data_dir`, under zoo, timm and
    torchvision.

    Raises ValueError with a sentence for the user where it is not to be had.
    """
    return load_source(
        recipe.model, recipe.dataset, fetch=fetch, data_dir=data_dir, allow_functions=allow_functions
    )


def load_source(
    source: ModelSource, dataset: str, *, fetch: Fetch, data_dir: Path, allow_functions: bool
) -> LoadedModel:
    """The network that `source` names, for images of `dataset`; otherwise as `load_model`."""
    match source:
        case JobResult() | Checkpoint():
            return _from_checkpoint(source, fetch(source))
        case Zoo():
            return zoo.load(source.zoo, data_dir / "zoo")
        case Timm():
            return pretrained.load(source.timm, data_dir / "timm")
        case Torchvision():
            return pretrained_torchvision.load(source.torchvision, data_dir / "torchvision")
        case Function():
            if not allow_functions:
                raise FunctionError(source.refusal)
            return _from_function(source.function, _first_images(dataset, data_dir))
        case _:
            assert_never(source)


# --- checkpoints ------------------------------------------------------------------------------------------


def _from_checkpoint(source: JobResult | Checkpoint, path: Path) -> LoadedModel:
    loaded = load_checkpoint(path)
    if isinstance(source, Checkpoint) and loaded.sha256 != source.checkpoint:
        raise CheckpointError(f"{path} has sha256 {loaded.sha256}, the recipe asks for {source.checkpoint}")
    return loaded if source.preprocessing is None else normalised(loaded, source.preprocessing)


def normalised(loaded: LoadedModel, expected: Normalisation) -> LoadedModel:
    """`loaded`, taking pixels in [0, 1] and normalising them first as it expects."""
    if len(expected.mean) != loaded.channels:
        raise ValueError(
            f"model.preprocessing has {len(expected.mean)} means, the model takes {loaded.channels} channels; "
            "give one mean and one std for each"
        )
    if loaded.preprocessing != "none":
        raise ValueError(
            f"this model normalises its input itself ({loaded.preprocessing}); leave model.preprocessing out"
        )
    model = Preprocessed(loaded.model, expected.mean, expected.std).eval()
    return LoadedModel(**{**vars(loaded), "model": model, "preprocessing": model.description})


# --- functions --------------------------------------------------------------------------------------------


def _from_function(name: str, x_BCHW: Tensor) -> LoadedModel:
    """What the function MODULE:NAME returns, with the number of its classes found on the images `x_BCHW`."""
    module_name, _, path = name.partition(":")
    try:
        module = import_module(module_name)
        function: Any = getattr(module, path)
    except ModuleNotFoundError as error:
        raise FunctionError(
            f"there is no module {error.name!r} for --model {name}; run the command where Python finds it"
        ) from error
    except AttributeError as error:
        raise FunctionError(f"the module {module_name} has no {path!r}; write --model MODULE:NAME") from error
    model = function() if callable(function) and not isinstance(function, nn.Module) else function
    if not isinstance(model, nn.Module):
        raise FunctionError(f"{name} returns a {type(model).__name__}; return an nn.Module, x in [0, 1] -> logits")
    model = model.cpu().eval()
    classes = _classes(name, model, x_BCHW)
    return LoadedModel(
        model=model,
        architecture=type(model).__name__,
        channels=x_BCHW.shape[1],
        classes=classes,
        dataset=None,
        sha256=_digest(model, module),
        preprocessing="inside the model, if any",
        notes=(f"the model is what the function {name} returned on the operator's machine",),
    )


@torch.no_grad()
def _classes(name: str, model: nn.Module, x_BCHW: Tensor) -> int:
    logits = model(x_BCHW)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x_BCHW):
        found = f"a tensor {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise FunctionError(
            f"the model of {name} answers {len(x_BCHW)} images with {found}; expected logits of shape "
            f"({len(x_BCHW)}, classes)"
        )
    return logits.shape[1]


def _digest(model: nn.Module, module: Any) -> str:
    """sha256 (hex) of the weights and of the file the function is in: a changed defence is another model."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    file = inspect.getsourcefile(module)
    digest.update(Path(file).read_bytes() if file else b"")
    return digest.hexdigest()


def _first_images(dataset: str, data_dir: Path) -> Tensor:
    arrays = load(dataset, "test", data_dir)
    images, _ = on_device(Arrays(arrays.images[:2], arrays.labels[:2], arrays.classes), "cpu")
    return as_pixels(images)
