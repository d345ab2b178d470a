"""The list of jobs, a page at a time: what was asked for, and what is known of it in a fixed number of queries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from sqlalchemy import ColumnElement, Engine, and_, func, or_, select
from sqlalchemy.orm import Session

from service import jobs
from service.callers import Caller
from service.db import reading
from service.tables import Job

PAGE = 50
Status = Literal["queued", "running", "cancelling", "succeeded", "failed", "canceled"]
Kind = Literal["train", "distill", "import", "evaluate", "corruptions"]
Words = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]*$")]
"""Databases refuse some control characters with errors of their own."""
_NEWEST = (Job.created_at.desc(), Job.id.desc())


def _unless_blank(value: object) -> object:
    """A form sends the empty text for what was left open."""
    return None if value == "" else value


class Question(BaseModel):
    """Which jobs, as query parameters."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    status: Annotated[Status | None, BeforeValidator(_unless_blank)] = None
    kind: Annotated[Kind | None, BeforeValidator(_unless_blank)] = None
    dataset: Annotated[Annotated[Words, Field(max_length=80)] | None, BeforeValidator(_unless_blank)] = None
    mine: bool = False
    """Only those that were submitted with the caller's key."""
    search: Annotated[Words, Field(max_length=100)] = ""
    """In names, and at the beginning of ids."""
    page: Annotated[int, Field(ge=1, le=1_000_000)] = 1


class Parent(NamedTuple):
    """The job whose model another one judges."""

    id: str
    name: str | None
    kind: str
    dataset: str
    status: str


@dataclass(frozen=True)
class JobList:
    jobs: Sequence[Job]
    """Those of the page that was asked for, newest first."""
    parents: Mapping[str, Parent]
    """Of the jobs, by id."""
    places: Mapping[str, int]
    """In its queue, of every job that waits; by id."""
    counts: Mapping[str, int]
    """How many jobs match in each status, whichever was asked for."""
    datasets: Sequence[str]
    """That any job is about."""
    total: int
    """Jobs that match, on all pages together."""
    pages: int


def find(db: Engine, question: Question, caller: Caller) -> JobList:
    wanted = _conditions(question, caller)
    shown = [*wanted, Job.status == question.status] if question.status else wanted
    with reading(db) as session:
        found = session.execute(select(Job.status, func.count()).where(*wanted).group_by(Job.status)).all()
        counts: dict[str, int] = dict(found)
        ids = select(Job.id).where(*shown).order_by(*_NEWEST).limit(PAGE).offset((question.page - 1) * PAGE)
        page = session.scalars(select(Job).where(Job.id.in_(session.scalars(ids).all())).order_by(*_NEWEST)).all()
        total = counts.get(question.status, 0) if question.status else sum(counts.values())
        return JobList(
            jobs=page,
            parents=_parents(session, page),
            places=_places(session, page),
            counts=counts,
            datasets=session.scalars(select(Job.dataset).distinct().order_by(Job.dataset)).all(),
            total=total,
            pages=-(-total // PAGE),
        )


def newest(
    db: Engine, *, status: Status | None, kind: Kind | None, limit: int, before: str | None
) -> Sequence[Job]:
    """The newest jobs, newest first; of those older than job `before`, if given. UnknownJobError where there is no
    such job."""
    wanted = _conditions(Question(kind=kind))
    if status:
        wanted.append(Job.status == status)
    if before:
        last = jobs.get(db, before)
        earlier = and_(Job.created_at == last.created_at, Job.id < last.id)
        wanted.append(or_(Job.created_at < last.created_at, earlier))
    with reading(db) as session:
        return session.scalars(select(Job).where(*wanted).order_by(*_NEWEST).limit(limit)).all()


def _conditions(question: Question, caller: Caller | None = None) -> list[ColumnElement[bool]]:
    """All but the status."""
    wanted: list[ColumnElement[bool]] = []
    if question.kind:
        wanted.append(Job.kind == question.kind)
    if question.dataset:
        wanted.append(Job.dataset == question.dataset)
    if question.mine and caller:
        wanted.append(Job.key_id.is_not_distinct_from(caller.key_id))
    if needle := question.search.strip():
        begins = Job.id.startswith(needle.lower(), autoescape=True)
        wanted.append(or_(Job.name.icontains(needle, autoescape=True), begins))
    return wanted


def _parents(session: Session, page: Sequence[Job]) -> dict[str, Parent]:
    ids = {job.parent_id for job in page if job.parent_id}
    columns = select(Job.id, Job.name, Job.kind, Job.dataset, Job.status)
    return {row.id: Parent(*row) for row in session.execute(columns.where(Job.id.in_(ids)))} if ids else {}


def _places(session: Session, page: Sequence[Job]) -> dict[str, int]:
    """As waiting.position counts, of all at once."""
    ids = [job.id for job in page if job.status == "queued"]
    if not ids:
        return {}
    order = func.rank().over(partition_by=Job.queue, order_by=(Job.priority.desc(), Job.created_at))
    line = select(Job.id, order.label("place")).where(Job.status == "queued").subquery()
    return {row.id: row.place for row in session.execute(select(line).where(line.c.id.in_(ids)))}
