"""`dklbench import robustbench` and `dklbench export robustbench`: published results in, our boards out."""

import json
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from service.options import Json, Url, client_of
from service.terminal import busy, console, counted, say, show_json

if TYPE_CHECKING:
    from service.model_info_folder import Remark

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
def import_robustbench(folder: Folder, url: Url = None, as_json: Json = False) -> None:
    """Put RobustBench's entries on the leaderboard. Needs an API key with scope admin. Exit code 1 where a file
    was refused."""
    from service.model_info_folder import read_dir

    with busy(f"reading {escape(str(folder))}"):
        read = read_dir(folder)
    done: dict[str, list[str]] = {"added": [], "changed": [], "unchanged": []}
    parcels = list(_parcels([info.stored() for info in read.entries]))
    with client_of(url) as client:
        for documents in counted(parcels, "sending"):
            for what, entries in client.import_reported(documents).items():
                done[what] += entries
    if as_json:
        show_json({**done, "remarks": _documents(read.remarks), "refused": _documents(read.refused)})
    else:
        _list(read.remarks, "worth a look")
        _list(read.refused, "refused")
        say(", ".join(f"{len(entries)} {what}" for what, entries in done.items()))
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
    as_json: Json = False,
) -> None:
    """Write the leaderboard as RobustBench keeps its own, for its generate_leaderboard.

    Files of the same names are replaced, others stay.
    """
    from service.model_info import ModelInfo
    from service.model_info_folder import Remark, write_dir

    with client_of(url) as client, busy("asking for the leaderboard"):
        found = client.model_infos(source.value)
    documents = [ModelInfo.model_validate(row["document"]) for row in found["entries"]]
    with busy("writing"):
        write_dir(folder, documents)
    left_out = [Remark(row["entry"], row["why"]) for row in found["left_out"]]
    if as_json:
        show_json({"folder": str(folder), "files": len(documents), "left_out": _documents(left_out)})
        return
    _list(left_out, "left out")
    say(f"files written to {escape(str(folder))}: {len(documents)}")


def _documents(remarks: "Sequence[Remark]") -> list[dict[str, str]]:
    return [remark._asdict() for remark in remarks]


def _list(remarks: "Sequence[Remark]", title: str) -> None:
    if remarks:
        table = Table(title, "", box=None, header_style="dim")
        for remark in remarks:
            table.add_row(escape(remark.of), escape(remark.sentence))
        console.print(table)
