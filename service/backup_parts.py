"""What a backup is made of, and how its parts are read without believing them.

    TARGET/backup.json                     the manifest: what there is, and the sha256 of each part
    TARGET/ledger-TIME-RANDOM/TABLE.jsonl.gz    a table of the ledger, one JSON object per row
    TARGET/ledger-TIME-RANDOM/files.jsonl.gz    the stored files that belong to it: sha256 and size
    TARGET/ledger-TIME-RANDOM/secret            the installation's secret, where it was asked for
    TARGET/files/ab/abcd...                the stored files, named by their content

There is a backup where there is a manifest, and it is renamed into its place when everything that it names is on
the disk. A later backup into the same folder adds the files that are new, and replaces the ledger in the same way.
"""

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.artifacts import blocks, sha256_of
from service.store_folder import FolderStore, regular

MANIFEST = "backup.json"
FILES = "files"
SECRET = "secret"
LEDGER = r"ledger-\d{8}T\d{6}Z-[0-9a-f]{8}"
_LONGEST_ROW = 256 * 2**20
"""Characters of a row; a recipe and its result have some thousand."""

Report = Callable[[str, int, int], None]
"""Told how far it is: of what ("rows", "bytes"), how many of them, and of how many; 0 where nobody knows."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]


class BackupError(ValueError):
    """The backup cannot be made or used; the message says why and what to do."""


class Part(BaseModel):
    """A file of the backup."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    rows: Count
    size: Count
    """Bytes on the disk."""
    sha256: Sha256


class Manifest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    format: Literal[1] = 1
    version: str
    """Of the program that made it."""
    revision: Annotated[str, Field(pattern=r"^\w{1,32}$")]
    """Of the ledger's schema."""
    database: Literal["sqlite", "postgresql"]
    """What it was made from; it can be restored into either."""
    made_at: float
    """When the ledger was like this, by the database's clock, in seconds since the epoch."""
    origin: str | None
    """The first job of the installation, by which later backups know that they are of the same one."""
    ledger: Annotated[str, Field(pattern=f"^{LEDGER}$")]
    tables: dict[Annotated[str, Field(pattern=r"^[a-z][a-z_]{0,62}$")], Part]
    files: Part
    """The list of stored files."""
    stored_bytes: Count
    """Of the stored files together."""
    missing: tuple[Sha256, ...]
    """Files that the ledger counts on and the store had lost, or had damaged, when the backup was made."""
    secret: Part | None

    def write(self, target: Path) -> None:
        """Put it into its place: from now on this is the backup in `target`."""
        document = {**self.model_dump(mode="json"), "sha256": self._digest()}
        temporary = target / f".{MANIFEST}.tmp"
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target / MANIFEST)
        flush_folder(target)

    @classmethod
    def read(cls, target: Path) -> "Manifest":
        """The backup in `target`; BackupError where there is none, or it is damaged or not ours."""
        path = target / MANIFEST
        if regular(path) is None:
            raise BackupError(
                f"there is no backup in {target}: it has no {MANIFEST}. An interrupted backup leaves none; make "
                "it again"
            )
        foreign = BackupError(f"{path} is damaged, or not of a backup of dkl-bench; use another backup")
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise foreign from None
        if isinstance(document, dict) and isinstance(document.get("format"), int) and document["format"] > 1:
            raise BackupError(f"{path} was written by a newer dkl-bench, in a form that this one does not know")
        try:
            digest = document.pop("sha256", None)
            manifest = cls.model_validate_json(json.dumps(document))
        except (ValidationError, AttributeError, TypeError):
            raise foreign from None
        if digest != manifest._digest():
            raise foreign
        return manifest

    def _digest(self) -> str:
        document = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(document.encode()).hexdigest()


def stored_in(target: Path) -> FolderStore:
    """The stored files of the backup."""
    return FolderStore(target / FILES)


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Part:
    """Write a table, a row at a time."""
    count = 0
    with path.open("xb") as file:
        with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=6, mtime=0) as packed:
            for row in rows:
                packed.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
                count += 1
        file.flush()
        os.fsync(file.fileno())
    return Part(rows=count, size=path.stat().st_size, sha256=sha256_of(blocks(path)))


def write_bytes(path: Path, content: bytes) -> Part:
    """Write a small part that nobody else may read."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return Part(rows=1, size=len(content), sha256=hashlib.sha256(content).hexdigest())


def parts(target: Path, manifest: Manifest) -> Iterator[tuple[Path, Part]]:
    """The parts beside the stored files, and where they lie."""
    folder = target / manifest.ledger
    for table, part in manifest.tables.items():
        yield folder / f"{table}.jsonl.gz", part
    yield folder / "files.jsonl.gz", manifest.files
    if manifest.secret is not None:
        yield folder / SECRET, manifest.secret


def verify_parts(target: Path, manifest: Manifest) -> None:
    """BackupError where a part is not what the manifest says, or lies elsewhere."""
    if not (target / manifest.ledger).is_dir() or (target / manifest.ledger).is_symlink():
        raise BackupError(f"the backup in {target} is not whole: {manifest.ledger} is missing; use another backup")
    for path, part in parts(target, manifest):
        found = regular(path)
        if found is None:
            raise BackupError(f"the backup in {target} is not whole: {path.name} is missing; use another backup")
        if found.st_size != part.size or sha256_of(blocks(path)) != part.sha256:
            raise BackupError(f"{path} is damaged: it is not what the manifest says; use another backup")


def read_rows(path: Path, part: Part) -> Iterator[dict[str, Any]]:
    """The rows of a verified part; BackupError where they are not what the manifest says."""
    damaged = BackupError(f"{path} is damaged, or was not written by dkl-bench; use another backup")
    count = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
            while line := file.readline(_LONGEST_ROW):
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise damaged
                count += 1
                yield row
    except (EOFError, zlib.error, gzip.BadGzipFile, ValueError) as error:
        raise error if isinstance(error, BackupError) else damaged from None
    if count != part.rows:
        raise BackupError(f"{path} has {count} rows, and the manifest says {part.rows}; use another backup")


def listed_files(target: Path, manifest: Manifest) -> Iterator[tuple[str, int]]:
    """sha256 and size of every stored file of the backup."""
    path = target / manifest.ledger / "files.jsonl.gz"
    for row in read_rows(path, manifest.files):
        match row:
            case {"sha256": str(sha256), "size": int(size), **rest} if not rest:
                yield sha256, size
            case _:
                raise BackupError(f"{path} is damaged, or was not written by dkl-bench; use another backup")


def flush_folder(folder: Path) -> None:
    """New names in it survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
