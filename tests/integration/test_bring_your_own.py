"""docs/bring-your-own.md, done from its first block to its last."""

import importlib.util
from pathlib import Path

import pytest
from processes import Start
from walkthrough import ROOT, walk

from service.settings import Settings


@pytest.mark.long
@pytest.mark.skipif(
    importlib.util.find_spec("robustbench") is None,
    reason="robustbench is not installed: pip install --no-deps robustbench==1.1.1",
)
@pytest.mark.timeout(900)
def test_the_document_is_true(start_embedded: Start, settings: Settings, tmp_path: Path) -> None:
    """A dozen commands that import torch; test_sources, test_datasets and test_folders cover its parts."""
    _, client = start_embedded()
    environment = {**settings.as_environment(), "DKLBENCH_URL": client.url, "TORCH_HOME": str(tmp_path / "torch")}
    walk(ROOT / "docs" / "bring-your-own.md", tmp_path, environment)
