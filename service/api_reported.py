"""The REST interface to published rows: what an admin imports, and the boards as RobustBench's files."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from service import imported
from service.access import Admin, needs
from service.exports import model_infos
from service.model_info import ModelInfo
from service.problems import ANSWERS, Problem
from service.state import state_of

router = APIRouter(prefix="/api/v1", responses=ANSWERS)
_UNKNOWN: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "Nobody imported this row"}}


class ReportedView(BaseModel):
    """A published row that somebody imported."""

    model_config = ConfigDict(from_attributes=True, use_attribute_docstrings=True)

    entry: str
    """The row's address is /entries/ENTRY."""
    added_at: float
    """Seconds since the epoch; of its last change."""
    added_by: str
    document: dict[str, JsonValue]
    """RobustBench's model_info, with the folder and the name of its file."""


class ImportedView(BaseModel):
    """What became of the entries of a request."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    added: list[str]
    changed: list[str]
    """They were there and said something else."""
    unchanged: list[str]


class ModelInfoView(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    entry: str
    document: dict[str, JsonValue]
    """RobustBench's model_info, with the folder and the name of its file."""


class LeftOutView(BaseModel):
    entry: str
    why: str


class ModelInfosView(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    entries: list[ModelInfoView]
    left_out: list[LeftOutView]
    """Rows that RobustBench has no board for."""


@router.get("/reported", dependencies=[needs("read")])
def list_reported(
    request: Request,
    after: Annotated[str, Query(max_length=200)] = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
) -> list[ReportedView]:
    """The published rows that were imported, by entry; `after` is the entry that the page before ended with. Those
    that come with the package are on the boards only."""
    found = imported.imported(state_of(request).db, after=after, limit=limit)
    return [ReportedView.model_validate(row) for row in found]


@router.post("/reported")
def import_reported(
    body: Annotated[list[ModelInfo], Field(max_length=1000)], request: Request, caller: Admin
) -> ImportedView:
    """Bring published results in, as RobustBench's model_info documents: all of them, or none where one is not
    valid. The same again changes nothing; another one of the same name takes its place."""
    done = imported.bring(state_of(request).db, body, caller=caller)
    return ImportedView(**done._asdict())


@router.delete("/reported/{entry}", responses=_UNKNOWN)
def delete_reported(entry: str, request: Request, caller: Admin) -> ReportedView:
    """Take an imported row out. One of the package that it had replaced is on its board again."""
    return ReportedView.model_validate(imported.take_out(state_of(request).db, entry, caller=caller))


@router.get("/model_info", dependencies=[needs("leaderboard")])
def list_model_info(
    request: Request, source: Literal["measured", "published", "all"] = "measured"
) -> ModelInfosView:
    """The rows of RobustBench's boards as RobustBench's files, and why the others are left out."""
    found, left_out = model_infos(state_of(request).db, source, str(request.base_url).rstrip("/"))
    return ModelInfosView(
        entries=[ModelInfoView(entry=entry, document=info.stored()) for entry, info in found],
        left_out=[LeftOutView(entry=entry, why=why) for entry, why in left_out],
    )
