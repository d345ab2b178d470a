"""Rows of boards to take along: as CSV, as LaTeX, as RobustBench's files. An entry's verdict, image by image."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Literal

from sqlalchemy import Engine

from dkl.flags import unpack
from service.measured import measured
from service.model_info import ModelInfo, why_left_out
from service.reported import model_info, reported
from service.rows import Row
from service.tables import Job
from service.wording import percent

_STARTS_A_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""In a spreadsheet, which must not compute what a stranger wrote."""


class NoFlagsError(LookupError):
    """No verdict per image is stored; the message says why."""


# --- CSV ----------------------------------------------------------------------------------------------------

_COLUMNS: dict[str, Callable[[Row], object]] = {
    "rank": lambda row: row.rank or None,
    "entry": lambda row: row.entry,
    "name": lambda row: row.name,
    "dataset": lambda row: row.board.dataset,
    "threat_model": lambda row: row.board.threat_model,
    "board_eps": lambda row: row.board.eps,
    "eps": lambda row: row.eps,
    "architecture": lambda row: row.architecture,
    "clean_accuracy": lambda row: row.clean_accuracy,
    "clean_low": lambda row: row.clean_interval and row.clean_interval[0],
    "clean_high": lambda row: row.clean_interval and row.clean_interval[1],
    "robust_accuracy": lambda row: row.robust_accuracy,
    "robust_low": lambda row: row.robust_interval and row.robust_interval[0],
    "robust_high": lambda row: row.robust_interval and row.robust_interval[1],
    "best_known_accuracy": lambda row: row.best_known_accuracy,
    "reported_accuracy": lambda row: row.reported_accuracy,
    "published_accuracy": lambda row: row.published_accuracy,
    "published_entry": lambda row: row.published_entry,
    "tied_with_leader": lambda row: row.tied,
    "images": lambda row: row.images,
    "suite": lambda row: row.suite,
    "engine": lambda row: row.engine,
    "unreliable": lambda row: row.unreliable,
    "extra_data": lambda row: row.extra_data,
    "forward_passes": lambda row: row.forward_passes,
    "source": lambda row: row.source,
    "recipe": lambda row: row.recipe,
    "title": lambda row: row.title,
    "authors": lambda row: row.authors,
    "venue": lambda row: row.venue,
    "year": lambda row: row.year,
    "url": lambda row: row.url,
    "citation": lambda row: row.citation,
    "note": lambda row: row.note,
    "date": lambda row: day(row.finished_at),
}
"""Accuracies and the ends of their 95 % intervals are fractions."""


def csv_of(rows: Sequence[Row]) -> str:
    """A header and a line for each row, with CRLF as RFC 4180 has it. Safe to open in a spreadsheet."""
    return _csv([list(_COLUMNS), *([column(row) for column in _COLUMNS.values()] for row in rows)])


def flags_csv(job: Job | None, entry: str) -> str:
    """A line per image of an evaluation: its row, its position in the test split, whether it was classified
    correctly, and whether it stands at the threat's radius; NoFlagsError where that is not stored.

    The position is left out where a random sample was judged: the evidence has it.
    """
    if job is None:
        raise NoFlagsError(f"entry {entry} is published elsewhere, and there are no verdicts per image")
    result = job.result or {}
    flags = result.get("flags")
    if not flags:
        raise NoFlagsError(f"the result of entry {entry} holds no verdicts per image; its evidence may")
    clean, robust = unpack(flags["clean"], result["images"]), unpack(flags["robust"], result["images"])
    first = job.recipe.get("sample", "first") == "first"
    lines = ((row, row if first else None, *pair) for row, pair in enumerate(zip(clean, robust, strict=True)))
    return _csv([["row", "position", "clean", "robust"], *lines])


def _csv(lines: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows([_cell(value) for value in line] for line in lines)
    return text.getvalue()


def _cell(value: object) -> object:
    """Numbers as they are, truth as 1 and 0, texts so that none is a formula."""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_STARTS_A_FORMULA) else value
    return value if value is None or isinstance(value, float) else int(value)  # type: ignore[call-overload]


def day(at: float | None) -> str | None:
    """Seconds since the epoch as the day in UTC: "2026-03-01"."""
    return None if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")


# --- LaTeX --------------------------------------------------------------------------------------------------

_TEX_HEADS = (
    "Rank",
    "Method",
    "Clean",
    "Robust",
    r"95\,\% interval",
    "Best known",
    "Images",
    "Architecture",
    "Source",
)
_TEX = {
    **{letter: f"\\{letter}" for letter in "{}$&#_%"},
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
}


def tex(text: str) -> str:
    """Plain text for LaTeX, in one line."""
    return "".join(_TEX.get(letter, letter) for letter in " ".join(text.split()))


def tex_row(row: Row) -> str:
    """A line of a LaTeX table, with a comment that names its columns."""
    return f"% {' & '.join(_TEX_HEADS)}; accuracies in percent\n{_tex_line(row)}\n"


def tex_table(rows: Sequence[Row]) -> str:
    """A LaTeX tabular of the rows of a board, the board's name above it as a comment."""
    title = rows[0].board.title if rows else "no row matches"
    lines = [
        f"% {title}; accuracies in percent",
        r"\begin{tabular}{rlrrcrrll}",
        r"\hline",
        " & ".join(_TEX_HEADS) + r" \\",
        r"\hline",
        *(_tex_line(row) for row in rows),
        r"\hline",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _tex_line(row: Row) -> str:
    low, high = row.robust_interval or (None, None)
    source = "measured" if row.source == "measured" else row.venue or row.citation or "published"
    cells = (
        str(row.rank or ""),
        tex(row.name),
        percent(row.clean_accuracy),
        percent(row.robust_accuracy),
        "" if low is None or high is None else f"{percent(low)}--{percent(high)}",
        percent(row.best_known_accuracy),
        "" if row.images is None else str(row.images),
        tex(row.architecture),
        tex(source),
    )
    return " & ".join(cells) + r" \\"


# --- RobustBench's files ------------------------------------------------------------------------------------

Named = tuple[str, ModelInfo]
"""An entry, and what RobustBench's file about it says."""


def model_infos(
    db: Engine, source: Literal["measured", "published", "all"], address: str
) -> tuple[list[Named], list[tuple[str, str]]]:
    """The rows that RobustBench has a board for, as its files; and the entries of the others, with the reason.

    `address` is that of this service, for rows that have no other.
    """
    found: list[Named] = []
    left_out: list[tuple[str, str]] = []
    for row in _rows(db, source):
        if why := why_left_out(row):
            left_out.append((row.entry, why))
        else:
            found.append((row.entry, model_info(db, row, address)))
    return found, left_out


def _rows(db: Engine, source: str) -> Iterator[Row]:
    boards = [measured(db)] if source == "measured" else [reported(db)]
    for known in [measured(db), *boards] if source == "all" else boards:
        for rows in known.values():
            yield from rows
