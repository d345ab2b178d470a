"""Builds the documents' site as `make docs` does, in a folder of a test's own."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from service.web.site import write

ROOT = Path(__file__).parent.parent


def build(project: Path) -> Path:
    """The folder of the built site, below `project`; skips the test where the generator is not installed."""
    pytest.importorskip("zensical", reason="pip install 'dkl-bench[docs]'")
    shutil.copy(ROOT / "mkdocs.yml", project)
    shutil.copytree(ROOT / "docs_theme", project / "docs_theme")
    write(project / "build" / "docs")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    built = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return project / "site"
