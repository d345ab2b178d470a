"""Checkpoints by their content: a file is named by its sha256 and never changes."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path


class Artifacts:
    """A folder of files named by sha256. Writing is atomic, and writing the same content twice is harmless."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, sha256: str) -> Path:
        """Where the content lies, if it is here. `sha256` is 64 hex digits, as recipes and results hold it."""
        return self._root / sha256[:2] / sha256

    def has(self, sha256: str) -> bool:
        return self.path(sha256).is_file()

    def put(self, source: Path) -> str:
        """Copy a file in; returns its sha256."""
        self._root.mkdir(parents=True, exist_ok=True)
        with source.open("rb") as reader, tempfile.NamedTemporaryFile(dir=self._root, delete=False) as writer:
            try:
                shutil.copyfileobj(reader, writer)
                writer.flush()
                os.fsync(writer.fileno())
                sha256 = _digest(Path(writer.name))
                self.path(sha256).parent.mkdir(exist_ok=True)
                os.replace(writer.name, self.path(sha256))
            except BaseException:
                os.unlink(writer.name)
                raise
        return sha256


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
