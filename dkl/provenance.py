"""Where a result comes from: machine, versions and the commit of the code."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from dkl.events import Provenance
from dkl.protocols import Evaluate, EvaluateCorruptions, Timm, Zoo
from dkl.recipes import Recipe, Train, fingerprint


def provenance(recipe: Recipe, device: str) -> Provenance:
    """All that is needed to ask `recipe` again, on this machine's `device`, now."""
    return Provenance(
        recipe=recipe.model_dump(mode="json"),
        fingerprint=fingerprint(recipe),
        seed=recipe.seed,
        device=device_name(device),
        versions=versions(recipe),
        commit=commit(),
    )


def device_name(device: str) -> str:
    """What the device is called: "NVIDIA H200", "cpu"."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def versions(recipe: Recipe) -> dict[str, str]:
    """Of Python and of the packages that decide what running `recipe` yields."""
    packages = ["torch", "numpy", "dkl-bench"]
    match recipe:
        case Train():
            packages += ["timm"] if recipe.model.kind == "timm" else []
        case Evaluate():
            packages += ["pyautoattack"]
        case EvaluateCorruptions():
            packages += ["imagecorruptions-imaug"] if recipe.source == "generated" else []
    if not isinstance(recipe, Train):
        packages += ["robustbench", "timm"] if isinstance(recipe.model, Zoo) else []
        packages += ["timm"] if isinstance(recipe.model, Timm) else []
    return {"python": platform.python_version(), **{package: _version(package) for package in packages}}


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
