"""A store that is a folder: root/ab/abcd..., one file per content, and temporary files directly under root."""

import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from service.artifacts import (
    BLOCK,
    MissingFileError,
    Stored,
    StoreError,
    blocks,
    checked,
    is_sha256,
    require_digest,
)
from service.space import noticing_full

_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp|tmp\w{8}")  # the second kind: of the first release
_SHARD = re.compile(r"[0-9a-f]{2}")


class FolderStore:
    """Complete files only: they are written beside their place, flushed to the disk, and renamed. Links are not
    followed, neither in the folder nor out of it."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, sha256: str) -> Path:
        """Where the content lies, if it is here."""
        path = self._root / checked(sha256)[:2] / sha256
        if not path.parent.resolve().is_relative_to(self._root.resolve()):
            raise StoreError(f"{path.parent} leads out of the store; remove that link")
        return path

    def stat(self, sha256: str) -> Stored | None:
        found = regular(self.path(sha256))
        return Stored(sha256, found.st_size, found.st_mtime) if found else None

    def has(self, sha256: str) -> bool:
        return self.stat(sha256) is not None

    def put(self, source: Path, *, expected: str | None = None) -> str:
        return self.write(blocks(source), expected=expected)

    def write(self, pieces: Iterable[bytes], *, expected: str | None = None) -> str:
        """As `put`, of content that is not a file."""
        digest = hashlib.sha256()
        with self._temporary() as temporary:
            with temporary.open("xb") as file:
                for piece in pieces:
                    file.write(piece)
                    digest.update(piece)
                file.flush()
                os.fsync(file.fileno())
            sha256 = require_digest(digest.hexdigest(), expected)
            self._settle(temporary, sha256)
        return sha256

    def take(self, source: Path, sha256: str) -> None:
        with self._temporary() as temporary:
            try:
                os.link(source, temporary, follow_symlinks=False)
            except OSError:  # another file system, or one without hard links
                self.put(source, expected=sha256)
                return
            os.utime(temporary)  # it comes into the store now
            self._settle(temporary, sha256)

    def fetch(self, sha256: str) -> Path:
        if not self.has(sha256):
            raise MissingFileError(f"no file with sha256 {sha256} is stored here")
        return self.path(sha256)

    def read(self, sha256: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        with os.fdopen(self._open(sha256), "rb") as file:
            left = os.fstat(file.fileno()).st_size - start if stop is None else stop - start
            file.seek(start)
            while left > 0 and (block := file.read(min(BLOCK, left))):
                left -= len(block)
                yield block

    def delete(self, sha256: str) -> None:
        self.path(sha256).unlink(missing_ok=True)

    def listing(self) -> Iterator[Stored]:
        for shard in _entries(self._root):
            if _SHARD.fullmatch(shard.name) and shard.is_dir(follow_symlinks=False):
                for entry in _entries(Path(shard.path)):
                    ours = is_sha256(entry.name) and entry.name.startswith(shard.name)
                    if ours and (found := self.stat(entry.name)):
                        yield found

    def tidy(self, before: float, *, dry_run: bool) -> Iterator[tuple[str, int]]:
        for entry in _entries(self._root):
            found = regular(Path(entry.path)) if _TEMPORARY.fullmatch(entry.name) else None
            if found is not None and found.st_mtime < before:
                if not dry_run:
                    Path(entry.path).unlink(missing_ok=True)
                yield entry.name, found.st_size

    def check(self) -> None:
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            with self._temporary() as temporary:
                temporary.write_bytes(b"\0")
        except OSError as error:
            raise StoreError(f"nothing can be stored in {self._root}: {error.strerror or error}") from error

    def _open(self, sha256: str) -> int:
        try:
            return os.open(self.path(sha256), os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise MissingFileError(f"no file with sha256 {sha256} is stored here") from None

    @contextmanager
    def _temporary(self) -> Iterator[Path]:
        """A new name in the store's own file system; whatever has it afterwards is removed."""
        self._root.mkdir(parents=True, exist_ok=True)
        path = self._root / f".{secrets.token_hex(8)}.tmp"
        try:
            with noticing_full(self._root):
                yield path
        finally:
            path.unlink(missing_ok=True)

    def _settle(self, temporary: Path, sha256: str) -> None:
        path = self.path(sha256)
        path.parent.mkdir(exist_ok=True)
        os.replace(temporary, path)
        for folder in (path.parent, self._root):  # the new name itself must survive a power cut
            _flush(folder)


def regular(path: Path) -> os.stat_result | None:
    """What is known of a file; None where there is none, or a link or a folder."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
