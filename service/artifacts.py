"""Stored files by their content: checkpoints, evidence and findings, named by sha256, and never changed.

A store keeps bytes and knows nothing of jobs; service/files.py is the ledger of who needs what is stored, and
service/collect.py removes what nobody needs.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

from service.settings import Settings

BLOCK = 2**20
"""Bytes that are read or written at once; nobody holds a whole file in memory."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


class MissingFileError(LookupError):
    """The store has no such content."""


class StoreError(OSError):
    """The store itself does not work at the moment."""


@dataclass(frozen=True)
class Stored:
    """A file as the store knows it."""

    sha256: str
    size: int
    modified: float
    """When it was last written, by the store's clock, in seconds since the epoch."""


class Store(Protocol):
    """What both kinds of store can do. Writing is atomic, and writing the same content again is harmless."""

    def stat(self, sha256: str) -> Stored | None:
        """What is known of the content; None where it is not here."""

    def has(self, sha256: str) -> bool: ...

    def put(self, source: Path, *, expected: str | None = None) -> str:
        """Copy a file in; returns its sha256. ValueError, and nothing is stored, where another was `expected`."""

    def take(self, source: Path, sha256: str) -> None:
        """As `put`, of a file whose content the caller has just verified and that nobody will write to again.

        Costs no copy where the store can do without one; `source` stays for the caller to remove.
        """

    def fetch(self, sha256: str) -> Path:
        """A local file with the content, to read at once; MissingFileError where it is not here."""

    def read(self, sha256: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """The bytes from `start` up to `stop`, in blocks; MissingFileError at the first where it is not here."""

    def delete(self, sha256: str) -> None:
        """Remove the content; harmless where it is not here. For service/collect.py, under the content's lock."""

    def listing(self) -> Iterator[Stored]:
        """Everything that is here."""

    def tidy(self, before: float, *, dry_run: bool) -> Iterator[tuple[str, int]]:
        """Remove what writes left that were interrupted before that time; says names and sizes."""

    def check(self) -> None:
        """StoreError where nothing could be stored now."""


@cache
def store_for(settings: Settings) -> Store:
    """The store of this installation: a folder in data_dir, or a bucket."""
    if not settings.store:
        from service.store_folder import FolderStore

        return FolderStore(settings.artifacts_dir)
    from service.store_bucket import BucketStore  # with boto3, which an installation without buckets need not have

    return BucketStore(settings)


def is_sha256(name: str) -> bool:
    return _SHA256.fullmatch(name) is not None


def checked(sha256: str) -> str:
    """The name, if it is one; nothing else ever becomes part of a path."""
    if not is_sha256(sha256):
        raise ValueError(f"a stored file is named by 64 hexadecimal digits, its sha256; found {sha256[:80]!r}")
    return sha256


def blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield block


def sha256_of(pieces: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def require_digest(found: str, expected: str | None) -> str:
    """`found`, if that is what was expected."""
    if expected not in {None, found}:
        raise ValueError(f"the file has sha256 {found}, expected {expected}; it was damaged, get it again")
    return found
