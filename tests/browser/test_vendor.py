"""What others wrote is there unchanged, with its licence, and is all there is."""

import hashlib
import tomllib
from pathlib import Path

VENDOR = Path(__file__).parents[2] / "service" / "web" / "static" / "vendor"


def test_vendored_files_are_the_published_ones() -> None:
    entries = tomllib.loads((VENDOR / "vendor.lock").read_text())["file"]
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in VENDOR.iterdir()}
    del found["vendor.lock"]
    assert found == {entry["file"]: entry["sha256"] for entry in entries}
    licensed = {entry["name"] for entry in entries if entry["origin"] == "LICENSE"}
    assert licensed == {entry["name"] for entry in entries}
