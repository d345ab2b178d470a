"""A backup read without restoring it: whether it is whole, and what is in it."""

from datetime import UTC, datetime
from pathlib import Path

from service.artifacts import Store, sha256_of
from service.backup_parts import (
    SECRET,
    Manifest,
    Report,
    listed_files,
    parts,
    read_rows,
    stored_in,
    verify_parts,
)
from service.space import show_bytes
from service.store_folder import FolderStore


def check(target: Path, report: Report = lambda what, done, total: None) -> tuple[Manifest, list[str]]:
    """Read all of the backup in `target`. Returns its manifest and a sentence for each stored file that is damaged
    or gone; BackupError where the ledger in it cannot be used."""
    manifest = Manifest.read(target)
    verify_parts(target, manifest)
    for path, part in parts(target, manifest):
        if path.name != SECRET:
            for _ in read_rows(path, part):
                pass
    faults, done, kept = [], 0, stored_in(target)
    for sha256, size in listed_files(target, manifest):
        if fault := _fault(kept, sha256, size):
            faults.append(fault)
        done += size
        report("bytes", done, manifest.stored_bytes)
    return manifest, faults


def _fault(kept: FolderStore, sha256: str, size: int) -> str | None:
    """What is wrong with a stored file of a backup, in a sentence."""
    stored = kept.stat(sha256)
    if stored is None:
        return f"the stored file {sha256} is missing"
    if stored.size != size or not intact(kept, sha256):
        path = kept.path(sha256)
        return f"{path} is damaged; remove it and make the backup again while the installation still has it"
    return None


def intact(store: Store, sha256: str) -> bool:
    """Whether what the store has under this name is that content."""
    return sha256_of(store.read(sha256)) == sha256


def summary(manifest: Manifest) -> str:
    """What is in the backup, for people."""
    when = datetime.fromtimestamp(manifest.made_at, UTC)
    jobs = manifest.tables["jobs"].rows if "jobs" in manifest.tables else 0
    return (
        f"the ledger of {when:%Y-%m-%d %H:%M:%S} UTC with {jobs} jobs, {manifest.files.rows} stored files "
        f"({show_bytes(manifest.stored_bytes)}), made by version {manifest.version}, schema {manifest.revision}"
    )
