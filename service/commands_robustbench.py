"""`dklbench import robustbench` and `dklbench export robustbench`: published results in, our boards out."""

import json
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from service.model_info import ModelInfo
from service.model_info_folder import Remark, read_dir, write_dir
from service.options import Url, client_of
from service.terminal import console

app = typer.Typer()
_imports = typer.Typer(no_args_is_help=True, help="Bring in what others have published.")
_exports = typer.Typer(no_args_is_help=True, help="Take the leaderboard along in the formats of others.")
app.add_typer(_imports, name="import")
app.add_typer(_exports, name="export")

Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="With DATASET/THREAT_MODEL/NAME.json, RobustBench's model_info.")
]
_MOST_DOCUMENTS = 1000
_MOST_BYTES = 900_000
"""Of a request."""


class Source(StrEnum):
    measured = "measured"
    published = "published"
    all = "all"


@_imports.callback()
def _import() -> None:
    """Without it typer would make the only command the group."""


@_exports.callback()
def _export() -> None:
    """Without it typer would make the only command the group."""


@_imports.command(name="robustbench")
def import_robustbench(folder: Folder, url: Url = None) -> None:
    """Put RobustBench's entries on the leaderboard. Needs an API key with scope admin."""
    read = read_dir(folder)
    done: dict[str, int] = {"added": 0, "changed": 0, "unchanged": 0}
    with client_of(url) as client:
        for documents in _parcels([info.stored() for info in read.entries]):
            for what, entries in client.import_reported(documents).items():
                done[what] += len(entries)
    _list(read.remarks, "worth a look")
    _list(read.refused, "refused")
    console.print(f"{done['added']} added, {done['changed']} changed, {done['unchanged']} unchanged")
    if read.refused:
        raise typer.Exit(1)


def _parcels(documents: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The documents in as few requests as the service takes; each of them is imported as a whole or not at all."""
    parcel: list[dict[str, Any]] = []
    size = 0
    for document in documents:
        length = len(json.dumps(document)) + 2
        if parcel and (len(parcel) == _MOST_DOCUMENTS or size + length > _MOST_BYTES):
            yield parcel
            parcel, size = [], 0
        parcel.append(document)
        size += length
    if parcel:
        yield parcel


@_exports.command(name="robustbench")
def export_robustbench(
    folder: Folder,
    source: Annotated[Source, typer.Option(help="Which rows.")] = Source.measured,
    url: Url = None,
) -> None:
    """Write the leaderboard as RobustBench keeps its own, for its generate_leaderboard.

    Files of the same names are replaced, others stay.
    """
    with client_of(url) as client:
        found = client.model_infos(source.value)
    documents = [ModelInfo.model_validate(row["document"]) for row in found["entries"]]
    write_dir(folder, documents)
    _list([Remark(row["entry"], row["why"]) for row in found["left_out"]], "left out")
    console.print(f"files written to {escape(str(folder))}: {len(documents)}", soft_wrap=True)


def _list(remarks: Sequence[Remark], title: str) -> None:
    if remarks:
        table = Table(title, "", box=None, header_style="dim")
        for remark in remarks:
            table.add_row(escape(remark.of), escape(remark.sentence))
        console.print(table)
