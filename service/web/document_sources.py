"""The documents as Markdown, by name: the files of docs/, notebooks rewritten, generated tables filled in.

What the service shows at /docs and what `make docs` builds a site of is the same text, from here.
"""

import json
import posixpath
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from service.web.api_reference import api_reference
from service.web.recipe_tables import recipe_tables

_INSTALLED = Path(__file__).parent / "docs"
FOLDER = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parent.parent.parent / "docs"
"""At the top of a checkout; the wheel has put them inside the package."""
HOME = "index"
"""The site's first page; the service has its own list of documents in its place."""

CONTENTS: Mapping[str, tuple[str, ...]] = {
    "Begin": ("quickstart", "install", "tutorial", "concepts"),
    "What the numbers mean": ("numbers", "threat-models", "reading-the-leaderboard", "evaluation"),
    "Use": (
        "command-line",
        "python-client",
        "bring-your-own",
        "training",
        "distillation",
        "reproduce",
        "recipes",
        "rest-api",
    ),
    "Run": ("deployment", "operations", "backup", "security"),
    "Extend": ("plugins", "extending/dataset", "extending/attack", "extending/objective"),
    "Background": ("design", "glossary"),
}
"""The order to read them in; tests/unit/test_docs_sources.py compares it with the navigation in mkdocs.yml."""

_MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)


def paths() -> dict[str, Path]:
    """The files of all documents by name, in the order of CONTENTS; those that it does not know come last."""
    files = sorted([*FOLDER.rglob("*.md"), *FOLDER.rglob("*.ipynb")])
    found = {file.relative_to(FOLDER).with_suffix("").as_posix(): file for file in files}
    order = [HOME, *(name for names in CONTENTS.values() for name in names)]
    known = {name: found[name] for name in order if name in found}
    return known | found


def pictures() -> dict[str, Path]:
    """The pictures among the documents, by their names with the suffix: "leaderboard.png"."""
    files = [path for suffix in ("png", "svg") for path in FOLDER.rglob(f"*.{suffix}")]
    return {path.relative_to(FOLDER).as_posix(): path for path in sorted(files)}


def markdown(path: Path, openapi: Callable[[], Mapping[str, Any]]) -> str:
    """The text of one document. `openapi` is asked for the interface's description where that is to be shown."""
    text = _of_notebook(path) if path.suffix == ".ipynb" else path.read_text()
    writers: Mapping[str, Callable[[], str]] = {
        "recipes": recipe_tables,
        "rest_api": lambda: api_reference(openapi()),
    }
    return _MARK.sub(lambda mark: writers[mark[1]](), text)


def beside(name: str, target: str) -> str:
    """What a link to `target` in the document `name` leads to, seen from docs/; begins with ".." outside of it."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), target))


# --- notebooks --------------------------------------------------------------------------------------------


def _of_notebook(path: Path) -> str:
    """A Jupyter notebook (nbformat 4) as Markdown: its text, its code, and what the code printed or drew."""
    cells = json.loads(path.read_text())["cells"]
    return "\n\n".join(part for cell in cells for part in _cell(cell)) + "\n"


def _cell(cell: Mapping[str, Any]) -> list[str]:
    source = "".join(cell["source"]).rstrip()
    match cell["cell_type"]:
        case "markdown":
            return [source]
        case "code" if source:
            shown = (_output(output) for output in cell["outputs"])
            return [_fenced(source, "python"), *(text for text in shown if text)]
        case _:
            return []


def _output(output: Mapping[str, Any]) -> str:
    if "text" in output:
        return _fenced("".join(output["text"]).rstrip(), "text")
    data = output.get("data", {})
    if "image/png" in data:
        return f"![Drawn by the code above](data:image/png;base64,{''.join(data['image/png'].split())})"
    return _fenced("".join(data["text/plain"]).rstrip(), "text") if "text/plain" in data else ""


def _fenced(text: str, language: str) -> str:
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"
