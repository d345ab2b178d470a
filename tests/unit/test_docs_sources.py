"""What documents are made of: contents and navigation agree, notebooks and generated tables say what there is."""

import doctest
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dkl.catalog import RECIPES, Published
from service.app import create_app
from service.settings import Settings
from service.web import document_sources, site
from service.web.document_sources import CONTENTS, FOLDER, HOME, beside, markdown, paths, pictures

ROOT = FOLDER.parent


def nothing() -> dict[str, Any]:
    raise AssertionError("the interface is not asked for")


def navigation() -> list[Any]:
    class Loader(yaml.SafeLoader):
        """Reads Python's names as nothing: what makes anchors is no matter here."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)
    configured: dict[str, Any] = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)
    found: list[Any] = configured["nav"]
    return found


def test_the_navigation_has_the_contents_and_nothing_else() -> None:
    first, *groups = navigation()
    assert first == {"Overview": f"{HOME}.md"}
    shown = {
        title: tuple(name.removesuffix(".md") for name in names) for one in groups for title, names in one.items()
    }
    assert shown == CONTENTS


def test_every_document_is_in_the_contents() -> None:
    assert set(paths()) - {HOME} == {name for names in CONTENTS.values() for name in names}


def test_every_picture_is_shown_somewhere() -> None:
    texts = [path.read_text() for path in (*paths().values(), ROOT / "README.md")]
    for name in pictures():
        assert any(f"({name})" in text or f"(docs/{name})" in text for text in texts), name


# --- worked examples --------------------------------------------------------------------------------------


def test_the_worked_example_is_what_the_program_computes() -> None:
    document = FOLDER / "numbers.md"
    failed, tried = doctest.testfile(str(document), module_relative=False)
    assert failed == 0
    assert tried > 20


def test_the_readmes_measurements_are_those_of_the_file() -> None:
    results = (ROOT / "benchmarks/results/equal-budget-cifar10-2026-11-21.txt").read_text()
    rows = re.findall(
        r"^\| ([\w-]+) \| (\d) \| ([\d.]+) % \| ([\d.]+) % \(([\d.]+) to ([\d.]+)\) \| (\d+) s, (\d+) s \|$",
        (ROOT / "README.md").read_text(),
        re.MULTILINE,
    )
    assert len(rows) == 6
    for method, seed, clean, robust, low, high, training, attack in rows:
        line = rf"^{method} +{seed} +{clean}% .* {robust}% \({low}% to {high}%\) +{training} s +{attack} s$"
        assert re.search(line, results, re.MULTILINE), (method, seed)


def test_the_readme_is_one_page_whose_links_lead_somewhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "benchmarks/README.md"):
        text = (ROOT / name).read_text()
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (ROOT / beside(name, target)).exists(), f"{name}: {target}"
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


# --- notebooks and generated parts ------------------------------------------------------------------------


def test_a_notebook_becomes_text_code_and_what_it_printed(tmp_path: Path) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Seen\n", "\n", "Text."]},
        {
            "cell_type": "code",
            "source": ["print(1)\n", "x"],
            "outputs": [
                {"output_type": "stream", "name": "stdout", "text": ["1\n"]},
                {"output_type": "execute_result", "data": {"text/plain": ["'```'"]}},
                {"output_type": "display_data", "data": {"image/png": "iVBOR\nw0=\n", "text/plain": ["<Figure>"]}},
                {"output_type": "display_data", "data": {"text/html": ["<script>alert(1)</script>"]}},
            ],
        },
        {"cell_type": "code", "source": [], "outputs": []},
        {"cell_type": "raw", "source": ["nothing to read"]},
    ]
    path = tmp_path / "seen.ipynb"
    path.write_text(json.dumps({"cells": cells, "nbformat": 4}))
    assert markdown(path, nothing) == (
        "# Seen\n\nText.\n\n```python\nprint(1)\nx\n```\n\n```text\n1\n```\n\n````text\n'```'\n````\n\n"
        "![Drawn by the code above](data:image/png;base64,iVBORw0=)\n"
    )


@pytest.fixture(scope="module")
def recipe_rows() -> dict[str, str]:
    text = markdown(FOLDER / "recipes.md", nothing)
    found = re.findall(r"^\| `([\w.@:-]+)` \| (.*) \|$", text, re.MULTILINE)
    assert len(found) == len(dict(found))
    return dict(found)


def test_every_recipe_stands_there_with_its_numbers_and_sources(recipe_rows: dict[str, str]) -> None:
    assert recipe_rows.keys() == RECIPES.keys()
    for name, entry in RECIPES.items():
        for printed in (*([entry.published] if entry.published else []), *entry.also):
            value = printed.robust_accuracy if isinstance(printed, Published) else printed.accuracy
            assert f"{value:.2%}**" in recipe_rows[name], name
            assert f"]({printed.url})" in recipe_rows[name], name
        if not entry.published:
            assert "**" not in recipe_rows[name]
        words = entry.about.split()[:3]
        assert all(word.strip(",.;:`") in recipe_rows[name].replace("\\", "") for word in words), name


@pytest.fixture
def openapi(tmp_path: Path) -> Iterator[dict[str, Any]]:
    settings = Settings(data_dir=tmp_path, database_url="", broker_url="", anonymous="leaderboard")
    app = create_app(settings)
    yield app.openapi()
    app.state.dkl.db.dispose()


def test_every_operation_and_every_document_of_the_interface_stands_there(openapi: dict[str, Any]) -> None:
    text = markdown(FOLDER / "rest-api.md", lambda: openapi)
    for path, operations in openapi["paths"].items():
        for method in operations:
            assert text.count(f"\n### `{method.upper()} {path}`\n") == 1
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    for name, schema in openapi["components"]["schemas"].items():
        assert name in headings
        for field in schema.get("properties", ()):
            assert f"\n| `{field}` | " in text
    for target in re.findall(r"\]\(#([^)]+)\)", text):
        assert target in {heading.lower() for heading in headings}
    for row in re.findall(r"^\|.*\|$", text, re.MULTILINE):
        assert len(re.findall(r"(?<!\\)\|", row)) == 5, row


# --- for the site -----------------------------------------------------------------------------------------


def test_links_out_of_the_documents_become_text_and_code_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = tmp_path / "docs"
    (shelf / "far").mkdir(parents=True)
    (shelf / "index.md").write_text("# Home\n\n![seen](far/seen.png)\n")
    (shelf / "book.ipynb").write_text(json.dumps({"cells": [{"cell_type": "markdown", "source": "# Book"}]}))
    (shelf / "far" / "seen.png").write_bytes(b"PNG")
    (shelf / "far" / "one.md").write_text(
        "# One\n\n[home](../index.md#home), [book](../book.ipynb), [code](../../service/app.py), [out](https://x.org/a.md),\n"
        "[here](#one), `[kept](../../service/app.py)`\n\n```md\n[kept](../../nothing.md)\n```\n"
    )
    monkeypatch.setattr(document_sources, "FOLDER", shelf)
    site.write(tmp_path / "out")
    assert (tmp_path / "out" / "far" / "seen.png").read_bytes() == b"PNG"
    assert (tmp_path / "out" / "book.md").read_text() == "# Book\n"
    assert (tmp_path / "out" / "far" / "one.md").read_text() == (
        "# One\n\n[home](../index.md#home), [book](../book.md), code, [out](https://x.org/a.md),\n"
        "[here](#one), `[kept](../../service/app.py)`\n\n```md\n[kept](../../nothing.md)\n```\n"
    )
