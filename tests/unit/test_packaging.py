"""What pyproject.toml says about the package, against what the code imports."""

import ast
import importlib.util
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from dkl import extras

ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL = {
    extra: {canonicalize_name(Requirement(text).name): Requirement(text) for text in texts}
    for extra, texts in PROJECT["optional-dependencies"].items()
}
BASE = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
OURS = {"dkl", "service", "workers"}
OF_ANOTHER = {
    "starlette": "fastapi",
    "markupsafe": "jinja2",
    "kombu": "celery",
    "redis": "celery",
    "botocore": "boto3",
}
"""Modules that come with a package which cannot be without them, and what brings them."""
BESIDE = {"robustbench"}
"""Installed with --no-deps, see the extra zoo."""


def imported() -> Iterator[tuple[str, Path]]:
    """The first name of every module that the package imports, and where."""
    for path in chain.from_iterable((ROOT / name).rglob("*.py") for name in sorted(OURS)):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                yield from ((alias.name.partition(".")[0], path) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.partition(".")[0], path


OWNERS = packages_distributions()


def distributions_of(module: str) -> set[str]:
    return set(map(canonicalize_name, OWNERS.get(OF_ANOTHER.get(module, module), ())))


FOREIGN = sorted({module for module, _ in imported()} - OURS - BESIDE - sys.stdlib_module_names)


@pytest.mark.parametrize("module", FOREIGN)
def test_what_is_imported_is_required(module: str) -> None:
    shipped = BASE.union(*(OPTIONAL[extra] for extra in ("service", "worker", "s3", "zoo", "corruptions")))
    assert distributions_of(module) & shipped


def test_what_is_required_is_imported() -> None:
    needed = set(chain.from_iterable(distributions_of(module) for module in FOREIGN))
    # psycopg by its name in database addresses, PyYAML by robustbench's modules.
    assert BASE.union(OPTIONAL["service"], OPTIONAL["worker"]) - needed == {"psycopg"}


@pytest.mark.parametrize("module", FOREIGN)
def test_a_missing_module_has_an_extra_that_brings_it(module: str) -> None:
    sentence = extras.what_to_install(ModuleNotFoundError(name=f"{module}.part"))
    if distributions_of(module) & BASE:
        assert sentence is None
    else:
        assert sentence is not None
        named = sentence.partition("dkl-bench[")[2].removesuffix("]'")
        assert distributions_of(module) & OPTIONAL[named].keys()


def test_a_module_of_no_extra_stays_an_error() -> None:
    assert extras.what_to_install(ModuleNotFoundError(name="dkl.nothing")) is None
    assert extras.what_to_install(ModuleNotFoundError("no name")) is None


@pytest.mark.parametrize(
    ("one", "other"), [("service", "worker"), ("dev", "s3"), ("dev", "corruptions"), ("dev", "zoo")]
)
def test_extras_agree_about_what_they_share(one: str, other: str) -> None:
    shared = OPTIONAL[one].keys() & OPTIONAL[other].keys()
    assert shared
    assert {name: str(OPTIONAL[one][name]) for name in shared} == {
        name: str(OPTIONAL[other][name]) for name in shared
    }


def test_the_document_names_every_extra() -> None:
    text = (ROOT / "docs" / "install.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) | {"service", "worker"} == OPTIONAL.keys()


def test_the_base_needs_neither_web_nor_database_nor_torch() -> None:
    assert not BASE & {"fastapi", "sqlalchemy", "torch", "uvicorn", "celery"}


def test_the_classifiers_say_what_is_tried() -> None:
    """3.11 is the floor that ruff, mypy and `make check` hold the code to."""
    named = [text.rpartition(" :: ")[2] for text in PROJECT["classifiers"] if "Python :: 3." in text]
    assert named == ["3.11", "3.12", "3.13"]
    assert PROJECT["requires-python"] == f">={named[0]}"
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert (tools["ruff"]["target-version"], tools["mypy"]["python_version"]) == ("py311", "3.11")


def test_classifiers_exist() -> None:
    from trove_classifiers import classifiers

    assert set(PROJECT["classifiers"]) <= classifiers


def test_the_version_is_written_once() -> None:
    Version(PROJECT["version"])
    for path in chain.from_iterable((ROOT / name).rglob("*.py") for name in sorted(OURS)):
        assert PROJECT["version"] not in path.read_text(), f"{path} should ask importlib.metadata"


def test_commands_lead_to_functions() -> None:
    for target in PROJECT["scripts"].values():
        module, _, name = target.partition(":")
        spec = importlib.util.find_spec(module)
        assert spec is not None
        assert spec.origin is not None
        tree = ast.parse(Path(spec.origin).read_bytes())
        assert any(isinstance(node, ast.FunctionDef) and node.name == name for node in tree.body)
