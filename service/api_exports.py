"""The REST interface to entries and boards as files: JSON, CSV, LaTeX, BibTeX, RobustBench's model_info."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Self

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field, JsonValue

from service import jobs, leaderboard
from service.access import needs
from service.citations import bibtex, measured_bibtex
from service.exports import csv_of, flags_csv, tex_row, tex_table
from service.problems import ANSWERS, Problem
from service.reported import model_info
from service.rows import Board, Row
from service.state import state_of
from service.tables import Job

router = APIRouter(prefix="/api/v1", responses=ANSWERS, dependencies=[needs("leaderboard")])
_UNKNOWN: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "There is no such entry"}}


class CSVResponse(Response):
    media_type = "text/csv"


class TeXResponse(Response):
    media_type = "application/x-tex"


class BibTeXResponse(Response):
    media_type = "application/x-bibtex"


class EntryView(Row):
    """A row with the board that it stands on."""

    board: Board = Field()

    @classmethod
    def of(cls, row: Row) -> Self:
        return cls(**{**row.model_dump(), "board": row.board})


def _row(entry: str, request: Request) -> Row:
    return leaderboard.entry(state_of(request).db, entry)


def _job(row: Row, request: Request) -> Job | None:
    """The evaluation of a measured row."""
    return jobs.get(state_of(request).db, row.job_id) if row.job_id else None


def _as_file(name: str) -> dict[str, str]:
    """Headers of a download; what is no letter, digit, dot or hyphen in its name becomes a hyphen."""
    plain = re.sub("[^A-Za-z0-9._-]+", "-", name)
    return {"Content-Disposition": f'attachment; filename="{plain}"'}


def _address(request: Request) -> str:
    return str(request.base_url).rstrip("/")


# --- of an entry --------------------------------------------------------------------------------------------


@router.get("/entries/{entry}", responses=_UNKNOWN)
def get_entry(entry: str, request: Request) -> EntryView:
    """One row of a leaderboard, measured here or published elsewhere."""
    return EntryView.of(_row(entry, request))


@router.get("/entries/{entry}/model_info", responses=_UNKNOWN)
def get_entry_model_info(entry: str, request: Request, response: Response) -> dict[str, JsonValue]:
    """The row as RobustBench's model_info has it: the file itself, or for other rows what it would say."""
    row = _row(entry, request)
    info = model_info(state_of(request).db, row, _address(request))
    response.headers.update(_as_file(f"{info.key}.json"))
    return info.document()


@router.get("/entries/{entry}/row.csv", response_class=CSVResponse, responses=_UNKNOWN)
def get_entry_csv(entry: str, request: Request) -> Response:
    """The row with the header of the leaderboard's CSV; accuracies are fractions."""
    row = _row(entry, request)
    return CSVResponse(csv_of([row]), headers=_as_file(f"{row.entry}.csv"))


@router.get("/entries/{entry}/row.tex", response_class=TeXResponse, responses=_UNKNOWN)
def get_entry_tex(entry: str, request: Request) -> Response:
    """The row as a line of a LaTeX table; accuracies are in percent."""
    row = _row(entry, request)
    return TeXResponse(tex_row(row), headers=_as_file(f"{row.entry}.tex"))


@router.get("/entries/{entry}/citation.bib", response_class=BibTeXResponse, responses=_UNKNOWN)
def get_entry_citation(entry: str, request: Request) -> Response:
    """How to cite the entry: the paper of a published row; for a measured one when and by what it was measured,
    and the paper of the same recipe or model where one is known."""
    row = _row(entry, request)
    job = _job(row, request)
    found = [measured_bibtex(row, job, _address(request))] if job else []
    paper = _row(row.published_entry, request) if row.published_entry else row
    if paper.source == "published":
        found.append(bibtex(paper, _address(request)))
    return BibTeXResponse("\n".join(found), headers=_as_file(f"{row.entry}.bib"))


@router.get("/entries/{entry}/flags.csv", response_class=CSVResponse, responses=_UNKNOWN)
def get_entry_flags(entry: str, request: Request) -> Response:
    """A line per image of a measured entry: whether it was classified correctly, and whether it stands under
    attack. 404 where no verdict per image is stored."""
    row = _row(entry, request)
    text = flags_csv(_job(row, request), row.entry)
    return CSVResponse(text, headers=_as_file(f"{row.entry}-flags.csv"))


# --- of a board ---------------------------------------------------------------------------------------------


@router.get("/leaderboard.csv", response_class=CSVResponse)
def get_leaderboard_csv(request: Request, question: Annotated[leaderboard.Question, Query()]) -> Response:
    """All rows that match, on one page; accuracies and their 95 % intervals are fractions."""
    found = leaderboard.find_all(state_of(request).db, question)
    return CSVResponse(csv_of(found), headers=_as_file(f"{_name(found)}.csv"))


@router.get("/leaderboard.tex", response_class=TeXResponse)
def get_leaderboard_tex(request: Request, question: Annotated[leaderboard.Question, Query()]) -> Response:
    """All rows that match as a LaTeX tabular; accuracies are in percent."""
    found = leaderboard.find_all(state_of(request).db, question)
    return TeXResponse(tex_table(found), headers=_as_file(f"{_name(found)}.tex"))


def _name(rows: Sequence[Row]) -> str:
    return f"leaderboard {rows[0].board.title}" if rows else "leaderboard"
