"""Live event streams: one reader per process looks at the ledger for all of them, and wakes those with news.

However many streams there are, a look is three short queries; a stream asks the ledger itself only to catch up.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fastapi.concurrency import run_in_threadpool
from fastapi.sse import ServerSentEvent
from sqlalchemy import Engine, select

from service.db import reading
from service.moves import TERMINAL
from service.tables import Job, JobEvent

POLL_SECONDS = 0.4
_LARGEST = 2**63 - 1
"""No event has a larger number, and databases know none."""


class _News(NamedTuple):
    """A job as it was at one moment, with all that it had said by then after event `since`."""

    since: int
    events: Sequence[tuple[int, ServerSentEvent]]
    """With their ids, ascending."""
    progress: ServerSentEvent | None
    end: ServerSentEvent | None

    @property
    def last(self) -> int:
        return self.events[-1][0] if self.events else self.since


@dataclass
class _Watched:
    """A job that streams of this process follow."""

    streams: int = 0
    revision: int | None = None
    """At the last look."""
    news: _News | None = None
    """What that look found; absent before there was one."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set, and replaced, when there are news."""

    def wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class Streams:
    """The streams of this process. A stream holds no database session while it waits."""

    def __init__(self, db: Engine) -> None:
        self._db = db
        self._watched: dict[str, _Watched] = {}
        self._closing = False

    async def look(self) -> None:
        """Wake the streams whose job has changed since the last look; `create_app` calls it again and again."""
        if not self._watched:
            return
        known = {
            job_id: (watched.revision, watched.news.last if watched.news else None)
            for job_id, watched in self._watched.items()
        }
        found = await run_in_threadpool(_look, self._db, known)
        for job_id, (revision, news) in found.items():
            if watched := self._watched.get(job_id):
                watched.revision, watched.news = revision, news
                watched.wake()
        if self._closing:
            for watched in self._watched.values():
                watched.wake()

    def close(self) -> None:
        """End every stream, so that the server can stop; browsers reconnect by themselves."""
        self._closing = True

    async def follow(self, job_id: str, *, after: int) -> AsyncIterator[ServerSentEvent]:
        """The job's events after event `after` and its progress, until it has ended.

        Facts carry an id, so that a broken stream goes on where it ended; progress is of the moment and has none.
        """
        after = min(after, _LARGEST)
        watched = self._watched.setdefault(job_id, _Watched())
        watched.streams += 1
        progress: ServerSentEvent | None = None
        try:
            while not self._closing:
                changed, news = watched.changed, watched.news
                if news is None or news.since > after:
                    news = await run_in_threadpool(_catch_up, self._db, job_id, after)
                    if watched.news is None and news.events:  # the looks go on from there
                        watched.news = news._replace(since=news.last, events=())
                if news.progress and (progress is None or news.progress.raw_data != progress.raw_data):
                    progress = news.progress
                    yield progress
                for number, event in news.events:
                    if number > after:
                        after = number
                        yield event
                if news.end:
                    yield news.end
                    return
                await changed.wait()
        finally:
            watched.streams -= 1
            if not watched.streams:
                del self._watched[job_id]


def _look(db: Engine, known: Mapping[str, tuple[int | None, int | None]]) -> dict[str, tuple[int, _News | None]]:
    """The jobs whose revision is not the known one, each with what it has said after the known event if there is
    one; else its streams look themselves."""
    with reading(db) as session:
        revisions = session.execute(select(Job.id, Job.revision).where(Job.id.in_(known))).all()
        changed = {row.id: row.revision for row in revisions if row.revision != known[row.id][0]}
        if not changed:
            return {}
        since = {job_id: last for job_id in changed if (last := known[job_id][1]) is not None}
        # The status before the rows: a job that has ended before this line has said everything.
        states = {row.id: row for row in session.execute(_STATE.where(Job.id.in_(since)))}
        said = _SAID.where(JobEvent.job_id.in_(since), JobEvent.id > min(since.values(), default=0))
        events: dict[str, list[tuple[int, ServerSentEvent]]] = {job_id: [] for job_id in since}
        for event in session.execute(said):
            if event.id > since[event.job_id]:
                events[event.job_id].append((event.id, _fact(event)))
    return {
        job_id: (revision, _news(since[job_id], states[job_id], events[job_id]) if job_id in since else None)
        for job_id, revision in changed.items()
    }


def _catch_up(db: Engine, job_id: str, after: int) -> _News:
    with reading(db) as session:
        state = session.execute(_STATE.where(Job.id == job_id)).one()
        said = session.execute(_SAID.where(JobEvent.job_id == job_id, JobEvent.id > after))
        return _news(after, state, [(event.id, _fact(event)) for event in said])


_STATE = select(Job.id, Job.status, Job.reason, Job.progress)
_SAID = select(JobEvent.id, JobEvent.job_id, JobEvent.kind, JobEvent.payload, JobEvent.attempt, JobEvent.at)
_SAID = _SAID.order_by(JobEvent.id)


def _news(since: int, state: Any, events: Sequence[tuple[int, ServerSentEvent]]) -> _News:
    end = {"status": state.status, "reason": state.reason}
    return _News(
        since,
        events,
        _event("progress", state.progress) if state.progress else None,
        _event("end", end) if state.status in TERMINAL else None,
    )


def _fact(event: Any) -> ServerSentEvent:
    return _event(event.kind, {**event.payload, "attempt": event.attempt, "at": event.at}, id=str(event.id))


def _event(kind: str, data: dict[str, Any], *, id: str | None = None) -> ServerSentEvent:
    # Written as JSON once, for all who follow the job.
    return ServerSentEvent(event=kind, id=id, raw_data=json.dumps(data, ensure_ascii=False))
