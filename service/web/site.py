"""The documents for a static site: `python -m service.web.site FOLDER` writes what `make docs` builds one from.

Generated tables are filled in and notebooks rewritten, as the service shows them. Links that lead out of docs/
become text, since the rest of the repository is not part of the site.
"""

import re
import shutil
import sys
import tempfile
from collections.abc import Container
from functools import cache
from pathlib import Path
from typing import Any

from service.app import create_app
from service.settings import Settings
from service.web.document_sources import beside, markdown, paths, pictures

_LINK = re.compile(r"(?<!!)\[(?P<shown>[^\[\]]*)\]\((?P<path>[^()\s:#]+)(?P<fragment>#[^()\s]*)?\)")
_CODE = re.compile(r"^(?P<fence>`{3,}).*?^(?P=fence)$|`[^`\n]+`", re.MULTILINE | re.DOTALL)


def write(folder: Path) -> None:
    """All documents as Markdown and all pictures, into `folder`, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    known = paths()
    for name, path in known.items():
        target = folder / f"{name}.md"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_inside(name, markdown(path, _openapi), known))
    for name, path in pictures().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)


def _inside(name: str, text: str, known: Container[str]) -> str:
    """`text` with only such links as lead to documents, to other sites, or to a place in it."""

    def follow(match: re.Match[str]) -> str:
        leads_to = beside(name, match["path"])
        other = re.sub(r"\.(md|ipynb)$", "", leads_to)
        if other == leads_to or other not in known:
            return match["shown"]
        return f"[{match['shown']}]({re.sub(r'[.]ipynb$', '.md', match['path'])}{match['fragment'] or ''})"

    parts, end = [], 0
    for code in _CODE.finditer(text):
        parts += [_LINK.sub(follow, text[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, _LINK.sub(follow, text[end:])])


@cache
def _openapi() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder), database_url="", broker_url="", anonymous="leaderboard")
        return create_app(settings).openapi()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("error: name the folder to write to: python -m service.web.site build/docs")
    write(Path(sys.argv[1]))
