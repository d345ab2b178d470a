"""RobustBench's model zoo: its architectures, with weights that we fetch and read ourselves.

Needs the package robustbench for the architectures alone. Its own __init__ and loader are gone around: they need
packages that it does not name, keep whatever a server sends, and unpickle it.
"""

import contextlib
import importlib
import importlib.util
import io
import sys
import types
import warnings
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from dkl import zoo_names
from dkl.downloads import fetched
from dkl.foreign import find_state, load_into, read_entries
from dkl.layouts import without_prefixes
from dkl.preprocessing import show_normalisation
from dkl.tensors import State
from dkl.weights import LoadedModel

_INSTALL = "pip install 'dkl-bench[zoo]', then pip install --no-deps robustbench==1.1.1"
_DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="
_STANDARD_R50 = "https://download.pytorch.org/models/resnet50-0676ba61.pth"
"""torchvision's first ImageNet weights of the ResNet-50, which RobustBench calls Standard_R50."""
_UNNAMED = ("torchdiffeq", "geotorch")
"""Imported by all, used by one model; where they are missing the others can do without."""


class ZooError(ValueError):
    """The zoo's package is missing, or cannot build the model here; the message says what to do."""


def load(name: str, weights_dir: Path) -> LoadedModel:
    """The zoo's model called DATASET/THREAT/NAME; its weights are kept in `weights_dir`.

    Raises UnknownZooModelError, ZooError, DownloadError or CheckpointError, each with a sentence for the user.
    """
    entry = zoo_names.find(name)
    plan = _plan(entry, _package())
    paths = [weights_dir / entry.dataset / entry.threat / f"{entry.name}{suffix}" for suffix in plan.suffixes]
    digests = [fetched(path, url) for path, url in zip(paths, plan.urls, strict=True)]
    network = _built(plan, entry)
    notes = [
        note
        for path, (part, content) in zip(paths, _parts(network, paths), strict=True)
        if (note := load_into(part, path, _spellings(part, path, content)))
    ]
    if plan.images:
        notes.append(f"RobustBench judges it on images prepared by {plan.images}; prepare yours like that")
    return LoadedModel(
        model=network.cpu().eval(),
        architecture=entry.architecture,
        channels=3,
        classes=zoo_names.CLASSES[entry.dataset],
        dataset=entry.dataset,
        sha256=digests[0] if len(digests) == 1 else sha256("".join(digests).encode()).hexdigest(),
        preprocessing=_shown_normalisation(network),
        notes=tuple(notes),
    )


# --- what to build, and from where ------------------------------------------------------------------------


class _Plan(NamedTuple):
    build: Any
    """() -> the network, with weights drawn at random."""
    urls: list[str]
    suffixes: list[str]
    """How the files are called: ".pt", or one per member of an ensemble."""
    images: str | None
    """RobustBench's name for how ImageNet images are prepared."""


def _plan(entry: zoo_names.ZooModel, package: Any) -> _Plan:
    boards = {
        (dataset.value, threat.value): models
        for dataset, threats in package.model_dicts.items()
        for threat, models in threats.items()
    }
    facts = boards.get((entry.dataset, entry.threat), {}).get(entry.name)
    if facts is None:
        raise ZooError(f"the installed robustbench does not know {entry}; {_INSTALL}")
    drive, images = facts["gdrive_id"], facts.get("preprocessing")
    if isinstance(drive, list):
        return _Plan(
            facts["model"], [_DRIVE + i for i in drive], [f".pt_m{i}.pt" for i in range(len(drive))], images
        )
    if drive:
        return _Plan(facts["model"], [_DRIVE + drive], [".pt"], images)
    if entry.name == "Standard_R50":
        return _Plan(_standard_r50, [_STANDARD_R50], [".pt"], images)
    return _from_timm(entry, images)


def _standard_r50() -> nn.Module:
    from torchvision.models import resnet50

    wrappers = importlib.import_module("robustbench.model_zoo.architectures.utils_architectures")
    network: nn.Module = wrappers.normalize_model(resnet50(), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return network


def _from_timm(entry: zoo_names.ZooModel, images: str | None) -> _Plan:
    """The twelve models that robustbench registers with timm, under names of its own."""
    import timm

    name = "_".join((entry.name.replace("-", "_"), entry.dataset, entry.threat)).lower()
    families = ("xcit", "deit", "alexnet")
    modules = [importlib.import_module(f"robustbench.model_zoo.architectures.{family}") for family in families]
    url = next(module.default_cfgs[name]["url"] for module in modules if name in module.default_cfgs)
    classes = zoo_names.CLASSES[entry.dataset]
    return _Plan(lambda: timm.create_model(name, num_classes=classes), [url], [".pt"], images)


def _package() -> types.ModuleType:
    """robustbench.model_zoo, imported without robustbench/__init__.py, which needs packages nobody installs."""
    found = importlib.util.find_spec("robustbench") if "robustbench" not in sys.modules else None
    if "robustbench" not in sys.modules:
        if found is None or not found.submodule_search_locations:
            raise ZooError(f"the model zoo needs the package robustbench for its architectures: {_INSTALL}")
        empty = types.ModuleType("robustbench")
        empty.__path__ = list(found.submodule_search_locations)
        sys.modules["robustbench"] = empty
    try:
        with _stand_ins(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of timm, about the names robustbench imports it by
            return importlib.import_module("robustbench.model_zoo")
    except ImportError as error:
        raise ZooError(f"robustbench cannot be imported ({error}): {_INSTALL}") from error


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
    """Inside, packages that a single model needs can be imported by name even where they are missing."""
    missing = [name for name in _UNNAMED if importlib.util.find_spec(name) is None]
    for name in missing:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].odeint_adjoint = None  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]


def _built(plan: _Plan, entry: zoo_names.ZooModel) -> nn.Module:
    if entry.name == "Kang2021Stable" and any(importlib.util.find_spec(name) is None for name in _UNNAMED):
        raise ZooError(f"{entry} needs more packages: pip install {' '.join(_UNNAMED)}")
    chatter = contextlib.redirect_stdout(io.StringIO())
    try:
        with torch.random.fork_rng(devices=[]), chatter, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch and timm, about the calls robustbench makes
            network: nn.Module = plan.build()
    except (RuntimeError, AssertionError, AttributeError, TypeError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise ZooError(f"robustbench cannot build {entry} here: {type(error).__name__}: {first}") from error
    return network


# --- weights ----------------------------------------------------------------------------------------------


def _parts(network: nn.Module, paths: list[Path]) -> Iterator[tuple[nn.Module, Mapping[str, object]]]:
    """The part of the network that each file, or part of a file, belongs to, with what the file holds."""
    contents = [read_entries(path) for path in paths]
    if len(paths) == 1:
        yield network, contents[0]
    elif hasattr(network, "comp_model"):  # two classifiers, and a file with the network that mixes them
        mixed: Any = network.comp_model
        yield from zip(mixed.models, contents[:2], strict=True)
        yield nn.ModuleDict({"model": mixed.policy_net, "bn": mixed.bn}), _flat(contents[2])
    elif hasattr(network, "rob_model"):
        classifiers: list[Any] = [network.std_model, network.rob_model]
        yield from zip(classifiers, contents, strict=True)
    else:
        members: Any = network.models
        yield from zip(members, contents, strict=True)


def _flat(content: Mapping[str, object]) -> dict[str, object]:
    """{"bn": {"weight": w}} -> {"bn.weight": w}"""
    return {
        f"{part}.{name.removeprefix('module.')}": value
        for part, state in content.items()
        if isinstance(state, Mapping)
        for name, value in state.items()
    }


def _spellings(part: nn.Module, path: Path, content: Mapping[str, object]) -> list[State]:
    """The weights under every naming that the zoo's files and networks combine; `load_into` takes what fits."""
    state = find_state(path, content, prefer=("last", "state_dict", "model"))
    bare = without_prefixes(state)
    each = {name.removeprefix("module.").removeprefix("model."): value for name, value in state.items()}
    spellings = [state, bare, each, *({f"model.{name}": v for name, v in some.items()} for some in (bare, each))]
    inner = part.get_submodule("model") if "model" in dict(part.named_children()) else part
    if type(inner).__module__ == "timm.models.swin_transformer":
        from timm.models.swin_transformer import checkpoint_filter_fn

        renamed = checkpoint_filter_fn(bare, inner)
        spellings += [renamed, {f"model.{name}": value for name, value in renamed.items()}]
    return spellings


def _shown_normalisation(network: nn.Module) -> str:
    """What the network says about its own normalisation, where it keeps it under one of the usual names."""
    for place in ("", "normalize", "module"):
        part = dict(network.named_modules()).get(place)
        for mean, std in (("mean", "std"), ("mu", "sigma")):
            means, stds = getattr(part, mean, None), getattr(part, std, None)
            if isinstance(means, torch.Tensor) and isinstance(stds, torch.Tensor):
                return show_normalisation(tuple(means.flatten().tolist()), tuple(stds.flatten().tolist()))
    return "as RobustBench defines it"
