"""Running an Import: the upload is read in a process that is thrown away, and what it leaves is checked here."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dkl.archives import UploadError
from dkl.events import Event, Finished, ImportResult, Progress
from dkl.formats import open_plainly
from dkl.imports import Import
from dkl.protocols import Checkpoint
from dkl.provenance import provenance
from dkl.sandbox import Reader, Taken, Task
from dkl.sources import Fetch
from dkl.weights import CheckpointError, about, describe

_UNGUARDED = (
    "no process can give up its network here (user namespaces, seccomp): the upload was read under limits "
    "of memory and time, and Python's own refusal of sockets, alone"
)


def run_import(recipe: Import, workdir: Path, *, fetch: Fetch) -> Iterator[Event]:
    """Make the upload `workdir / "model.safetensors"`; UploadError with a sentence where that is not possible.

    An interrupted import begins again.
    """
    upload = fetch(Checkpoint(checkpoint=recipe.upload))
    _require_same(upload, recipe.upload)
    with tempfile.TemporaryDirectory(dir=workdir) as folder:
        written = Path(folder).resolve() / "model.safetensors"
        task = Task(
            upload=upload.absolute(),
            target=written,
            dataset=recipe.dataset,
            model=recipe.model,
            entry=recipe.entry,
        )
        with Reader(task) as reader:
            while not reader.wait(1.0):
                yield Progress(phase="reading the upload", done=0, total=1, rate=0, eta_seconds=0)
            taken = reader.answer()
        result = _checked(recipe, written, taken)
        os.replace(written, workdir / "model.safetensors")
    yield Finished(result=result)


def _require_same(upload: Path, sha256: str) -> None:
    with open_plainly(upload) as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise UploadError(f"the stored upload has sha256 {found}, expected {sha256}; upload the file again")


def _checked(recipe: Import, written: Path, taken: Taken) -> ImportResult:
    """The result, once the file that the process left is seen to be the checkpoint that was asked for."""
    with open_plainly(written) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    found, network = describe(written)
    sizes = {"channels": found.channels, "classes": found.classes}
    if found != about(recipe.model, dataset=recipe.dataset, **sizes):
        raise CheckpointError("reading the upload left a checkpoint of another network than the recipe's")
    guarded = {"namespace", "syscalls"} & set(taken.guards)
    return ImportResult(
        checkpoint_sha256=sha256,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        source_sha256=recipe.upload,
        format=taken.format,
        notes=(*taken.notes, *(() if guarded else (_UNGUARDED,))),
        provenance=provenance(recipe, "cpu", dataset_sha256=None, checkpoint_sha256=sha256),
    )
