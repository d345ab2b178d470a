"""What the images install is locked, with hashes, and fits what pyproject.toml asks for. Needs no network."""

import re
import tomllib
from collections import deque
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = {"service": ("service", "s3"), "worker": ("worker", "s3"), "build": ()}
(IMAGE_PYTHON,) = re.findall(r"^ARG PYTHON=python:([\d.]+)-", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
PLATFORM = {
    **default_environment(),
    "python_version": IMAGE_PYTHON,
    "python_full_version": f"{IMAGE_PYTHON}.0",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
}
"""Of the image, for markers."""


def entries(name: str) -> list[str]:
    text = (ROOT / "deploy" / f"{name}.lock").read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]


def locked(name: str) -> dict[str, Version]:
    """What pip takes from the lock file in the image."""
    found = {}
    for entry in entries(name):
        requirement = Requirement(entry.split("--hash")[0])
        if requirement.marker is None or requirement.marker.evaluate(PLATFORM):
            (pin,) = requirement.specifier
            assert pin.operator == "=="
            assert canonicalize_name(requirement.name) not in found, f"two versions of {requirement.name}"
            found[canonicalize_name(requirement.name)] = Version(pin.version)
    return found


def asked(name: str) -> list[Requirement]:
    """What pyproject.toml wants in that image."""
    if name == "build":
        return [Requirement(line) for line in PYPROJECT["build-system"]["requires"]]
    lines = list(PYPROJECT["project"]["dependencies"])
    waiting = deque(EXTRAS[name])
    while waiting:
        lines += PYPROJECT["project"]["optional-dependencies"][waiting.popleft()]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("name", EXTRAS)
def test_the_lock_satisfies_the_project(name: str) -> None:
    pins = locked(name)
    wrong = []
    for requirement in asked(name):
        if requirement.marker is None or requirement.marker.evaluate(PLATFORM):
            pin = pins.get(canonicalize_name(requirement.name))
            if pin is None or not requirement.specifier.contains(pin, prereleases=True):
                wrong.append(f"{requirement} against {pin}")
    assert not wrong, f"run `make lock`: deploy/{name}.lock does not fit pyproject.toml: {wrong}"


@pytest.mark.parametrize("name", EXTRAS)
def test_every_package_has_its_hashes(name: str) -> None:
    assert len(entries(name)) > len(asked(name))
    for entry in entries(name):
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry
    text = (ROOT / "deploy" / f"{name}.lock").read_text()
    assert "make lock" in text.splitlines()[1]
    assert "index-url" not in text
    assert "file:" not in text


def test_both_images_have_the_same_versions_of_what_they_share() -> None:
    service, worker = locked("service"), locked("worker")
    both = service.keys() & worker.keys()
    assert {"sqlalchemy", "celery", "pydantic", "boto3"} <= both
    assert {name: service[name] for name in both} == {name: worker[name] for name in both}


def test_the_service_has_no_torch() -> None:
    assert not {"torch", "torchvision", "timm"} & locked("service").keys()
    assert {"torch", "torchvision", "nvidia-cudnn-cu13"} <= locked("worker").keys()


def test_the_images_have_a_python_that_the_project_allows() -> None:
    from packaging.specifiers import SpecifierSet

    assert SpecifierSet(PYPROJECT["project"]["requires-python"]).contains(IMAGE_PYTHON)
    assert f"Programming Language :: Python :: {IMAGE_PYTHON}" in PYPROJECT["project"]["classifiers"]
