"""Where a result comes from: machine, versions and the commit of the code."""

import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pynvml
import torch

from dkl import plugins
from dkl.architectures import PluginModel
from dkl.events import Provenance
from dkl.imports import Import
from dkl.objectives import PluginObjective
from dkl.protocols import Evaluate, EvaluateCorruptions, Timm, Torchvision, Zoo
from dkl.recipes import Distill, Recipe, Train, fingerprint


def provenance(
    recipe: Recipe,
    device: str,
    *,
    dataset_sha256: str | None,
    checkpoint_sha256: str,
    devices: Iterable[str] = (),
    packages: Iterable[str] = (),
) -> Provenance:
    """All that is needed to ask `recipe` again, on this machine's `device`, now.

    `devices` are the names of those that did the work, where this one may have done a part of it or none;
    `packages` those that the model it was given is made of, beside what the recipe itself says.
    """
    return Provenance(
        recipe=recipe.model_dump(mode="json"),
        fingerprint=fingerprint(recipe),
        seed=0 if isinstance(recipe, Import) else recipe.seed,  # which draws no random numbers
        dataset_sha256=dataset_sha256,
        checkpoint_sha256=checkpoint_sha256,
        device=", ".join(devices) or device_name(device),
        driver=_driver() if device.startswith("cuda") else None,
        flags=_flags(),
        platform=platform.platform(),
        processor=_processor(),
        versions={**versions(recipe), **{package: _version(package) for package in packages}},
        commit=commit(),
    )


def device_name(device: str) -> str:
    """What the device is called: "NVIDIA H200", "cpu"."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def _driver() -> dict[str, str]:
    found = {"cuda": torch.version.cuda or "none", "cudnn": str(torch.backends.cudnn.version() or "none")}
    try:
        pynvml.nvmlInit()
        return {"nvidia": pynvml.nvmlSystemGetDriverVersion(), **found}
    except pynvml.NVMLError as error:  # a container may lack the library; the rest is worth saying
        return {"nvidia": f"unknown ({error})", **found}


def _flags() -> dict[str, bool | str]:
    """Verdicts and nothing else are made in IEEE float32 whatever these say (dkl/verify.py)."""
    cudnn = torch.backends.cudnn
    return {
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_allow_tf32": cudnn.allow_tf32,
        "cudnn_benchmark": cudnn.benchmark,
        "cudnn_deterministic": cudnn.deterministic,
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
    }


def _processor() -> str:
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def versions(recipe: Recipe) -> dict[str, str]:
    """Of Python and of the packages that decide what running `recipe` yields."""
    packages = ["torch", "numpy", "dkl-bench"]
    match recipe:
        case Train() | Distill() | Import():
            packages += [recipe.model.kind] if recipe.model.kind in {"timm", "torchvision"} else []
            packages += _of_plugins(recipe)
        case Evaluate():
            packages += ["pyautoattack"]
        case EvaluateCorruptions():
            packages += ["imagecorruptions-imaug"] if recipe.source == "generated" else []
    if isinstance(recipe, Evaluate | EvaluateCorruptions):
        packages += ["robustbench", "timm"] if isinstance(recipe.model, Zoo) else []
        packages += ["timm"] if isinstance(recipe.model, Timm) else []
        packages += ["torchvision"] if isinstance(recipe.model, Torchvision) else []
    return {"python": platform.python_version(), **{package: _version(package) for package in packages}}


def _of_plugins(recipe: Train | Distill | Import) -> list[str]:
    """The packages whose network or objective the recipe names; none where they are missing, which says itself."""
    asked: list[tuple[plugins.Kind, str]] = []
    if isinstance(recipe.model, PluginModel):
        asked.append(("model", recipe.model.name))
    if isinstance(recipe, Train) and isinstance(recipe.objective, PluginObjective):
        asked.append(("objective", recipe.objective.name))
    return [plugins.find(kind, name).package for kind, name in asked]


def commit() -> str | None:
    """The git commit of this checkout, with "-dirty" where files differ from it; None outside a checkout."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None  # no git here, or it refuses a checkout of somebody else's


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"  # a source tree that was put on the path
