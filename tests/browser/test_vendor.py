"""What others wrote is there unchanged, with its licence, and is all there is."""

import hashlib
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVED, TESTING = ROOT / "service" / "web" / "static" / "vendor", ROOT / "tests" / "data" / "axe"


@pytest.mark.parametrize("folder", [SERVED, TESTING], ids=["served", "testing"])
def test_vendored_files_are_the_published_ones(folder: Path) -> None:
    entries = tomllib.loads((folder / "vendor.lock").read_text())["file"]
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    del found["vendor.lock"]
    assert found == {entry["file"]: entry["sha256"] for entry in entries}
    licensed = {entry["name"] for entry in entries if entry["origin"] == "LICENSE"}
    assert licensed == {entry["name"] for entry in entries}
