"""What happened to a job, as its page tells it: every change with its time, who made it and why."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Engine, select

from service.db import reading
from service.measured import why_unranked
from service.tables import Job, JobEvent


@dataclass(frozen=True)
class Entry:
    mark: str
    """Which dot it gets: a status, or the kind of the event."""
    what: str
    by: str | None
    """Who or what did it: "by anna (0a1b2c3d4e5f)", "on cuda:0"."""
    attempt: int | None
    """Of the worker that it is about; the first goes without saying."""
    why: str | None
    versions: dict[str, str]
    commit: str | None
    at: float
    later: float
    """Seconds since the entry before it."""


def history_of(events: Sequence[JobEvent]) -> list[Entry]:
    """The changes among a job's events, oldest first. A worker that joins others begins in the same line, and
    versions are told where they change."""
    entries: list[Entry] = []
    joined: dict[int, int] = {}
    told: tuple[dict[str, str], str | None] = ({}, None)
    for event in events:
        before = entries[-1].at if entries else event.at
        if event.kind == "started" and (place := joined.pop(event.attempt, None)) is not None:
            entries[place] = replace(entries[place], by=f"{entries[place].by} on {event.payload['device']}")
            continue
        if (entry := _entry(event, event.at - before)) is not None:
            if event.kind == "joined":
                joined[event.attempt] = len(entries)
            if entry.versions and (entry.versions, entry.commit) == told:
                entry = replace(entry, versions={}, commit=None)
            elif entry.versions:
                told = entry.versions, entry.commit
            entries.append(entry)
    return entries


def _entry(event: JobEvent, later: float) -> Entry | None:
    said, attempt = event.payload, event.attempt if event.attempt > 1 else None
    plain = Entry(event.kind, event.kind, None, attempt, said.get("reason"), {}, None, event.at, later)
    match event.kind:
        case "status":
            return replace(plain, mark=said["status"], what=said["status"], by=f"by {said['actor']}")
        case "joined" | "left":
            return replace(plain, by=said["worker"])
        case "started":
            return replace(
                plain,
                what="resumes" if said["resumed"] else "begins",
                by=f"on {said['device']}",
                attempt=None,  # the line before has it
                versions=said.get("versions") or {},
                commit=said.get("commit"),
            )
        case "adjusted":
            return replace(plain, why=said["sentence"])
    return None


def reruns(db: Engine, job_id: str) -> Sequence[Job]:
    """The jobs that run this one again, oldest first."""
    with reading(db) as session:
        return session.scalars(select(Job).where(Job.rerun_of == job_id).order_by(Job.created_at, Job.id)).all()


def entries_of_runs(db: Engine, runs: Sequence[Job]) -> list[str]:
    """The entries of boards that these runs of one recipe made, one per run: itself, or the newest evaluation of
    what it trained."""
    ids = [run.id for run in runs]
    judged = select(Job).where(Job.kind == "evaluate", Job.status == "succeeded")
    with reading(db) as session:
        found = session.scalars(
            judged.where(Job.id.in_(ids) | Job.parent_id.in_(ids)).order_by(Job.finished_at, Job.id)
        ).all()
    newest = {job.id if job.id in ids else job.parent_id: job.id for job in found if why_unranked(job) is None}
    return [newest[run_id] for run_id in ids if run_id in newest]
