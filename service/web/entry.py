"""What the page of a leaderboard's entry shows beside its numbers: where it comes from, what one may take."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlencode

from sqlalchemy import Engine

from dkl.datasets import show_name
from service.artifacts import Store, Stored, StoreError
from service.lineage import LEARNERS
from service.measured import measured
from service.reported import reported
from service.rows import Row
from service.space import show_bytes
from service.standings import standings
from service.stored import FileKind, stored_file
from service.tables import Job

_KINDS: tuple[FileKind, ...] = ("checkpoint", "evidence")


class Place(NamedTuple):
    """Where an entry stands on its board."""

    entries: int
    """On the whole board."""
    leader: Row


def place_of(db: Engine, row: Row) -> Place:
    standing = standings(db).of(row.board)
    return Place(len(standing.rows), standing.shown(standing.leader))


def same_recipe(db: Engine, row: Row) -> list[Row]:
    """The rows that were measured here for the recipe that the published `row` reports, the best first."""
    here = [other for other in measured(db).get(row.board, ()) if other.published_entry == row.entry]
    return sorted(here, key=lambda other: -other.robust_accuracy)


def in_print(db: Engine, row: Row) -> list[Row]:
    """Other published rows of the recipe that trains the model of the published `row`."""
    there = reported(db).get(row.board, ()) if row.recipe else ()
    return [other for other in there if other.recipe == row.recipe and other.entry != row.entry]


def compare_url(*entries: str) -> str:
    return "/compare?" + urlencode([("entry", entry) for entry in entries])


# --- files ------------------------------------------------------------------------------------------------


class Download(NamedTuple):
    label: str
    url: str
    about: str


def files_of(store: Store, job: Job) -> Mapping[FileKind, Stored] | None:
    """The checkpoint and the evidence, as far as they are stored here; None where the store does not answer."""
    try:
        found = {kind: stored_file(store, job, kind) for kind in _KINDS}
    except StoreError:
        return None
    return {kind: stored for kind, stored in found.items() if stored is not None}


def downloads_of(row: Row, job: Job | None, files: Mapping[FileKind, Stored], *, reads: bool) -> list[Download]:
    """What the visitor may take along; the files of jobs are for those who may read jobs."""
    address = f"/api/v1/entries/{row.entry}"
    found = []
    if job and reads:
        about = {"checkpoint": "the weights, safetensors", "evidence": "verdicts and adversarial images"}
        found += [
            Download(
                kind.capitalize(), f"/api/v1/jobs/{job.id}/{kind}", f"{about[kind]}, {show_bytes(stored.size)}"
            )
            for kind, stored in files.items()
        ]
    if job and (job.result or {}).get("flags"):
        found.append(Download("Flags", f"{address}/flags.csv", "one line per image, CSV"))
    return [
        *found,
        Download("model_info", f"{address}/model_info", "JSON, as RobustBench has it"),
        Download("Row for a spreadsheet", f"{address}/row.csv", "CSV"),
        Download("Row for a table", f"{address}/row.tex", "LaTeX"),
        Download("Citation", f"{address}/citation.bib", "BibTeX"),
    ]


# --- lineage ----------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """One thing that the result comes from; the last one is the evaluation itself."""

    kind: str
    title: str
    job: Job | None = None
    """For those who may read jobs."""
    sha256: str | None = None
    """Of its content, or the recipe's fingerprint."""
    about: Sequence[str] = ()


def lineage_of(job: Job, training: Job | None) -> list[Step]:
    """From the data to the evaluation `job`, the first thing first."""
    result = job.result or {}
    provenance = result.get("provenance") or {}
    learnt = ((training.result if training else None) or {}).get("provenance") or {}
    steps = []
    if training:
        if training.kind in LEARNERS:
            steps.append(_data(training, "training images", learnt))
        kind = {"train": "Training", "distill": "Distillation", "import": "Upload"}.get(
            training.kind, training.kind
        )
        steps.append(
            Step(kind, training.name or f"{training.kind} on {show_name(training.dataset)}", training, None,
                 _circumstances(training, learnt))
        )  # fmt: skip
    elif public := _public(job.recipe["model"]):
        steps.append(Step("Published weights", public))
    steps += [
        Step("Checkpoint", result["architecture"], None, result["checkpoint_sha256"]),
        _data(job, "test images", provenance),
        Step("Evaluation", job.name or f"evaluation on {show_name(job.dataset)}", job, job.fingerprint,
             _circumstances(job, provenance)),
    ]  # fmt: skip
    return steps


def _data(job: Job, what: str, provenance: Mapping[str, Any]) -> Step:
    return Step("Data set", f"{show_name(job.dataset)}, {what}", None, provenance.get("dataset_sha256"))


def _public(source: Mapping[str, Any]) -> str | None:
    if source.get("zoo"):
        return f"RobustBench's zoo: {source['zoo']}"
    libraries = ("timm", "torchvision")
    return next((f"{library}: {source[library]}" for library in libraries if source.get(library)), None)


def _circumstances(job: Job, provenance: Mapping[str, Any]) -> list[str]:
    device = provenance.get("device")
    return [str(device)] if device else []
