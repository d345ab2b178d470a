"""Live event streams: one poller per process watches the ledger and wakes the streams whose job changed."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi.concurrency import run_in_threadpool
from fastapi.sse import ServerSentEvent
from sqlalchemy import Engine

from service import jobs

POLL_SECONDS = 0.4


class Streams:
    """The streams of this process. A stream holds no database session while it waits."""

    def __init__(self, db: Engine) -> None:
        self._db = db
        self._watched: dict[str, int] = {}
        self._known: dict[str, int] = {}
        self._changed = asyncio.Condition()
        self._closing = False

    async def look(self) -> None:
        """Wake the streams whose job has changed since the last look; `create_app` calls it again and again."""
        if not self._watched:
            return
        revisions = await run_in_threadpool(jobs.revisions, self._db, list(self._watched))
        changed = any(self._known.get(job_id) != revision for job_id, revision in revisions.items())
        self._known |= revisions
        if changed or self._closing:
            async with self._changed:
                self._changed.notify_all()

    def close(self) -> None:
        """End every stream, so that the server can stop; browsers reconnect by themselves."""
        self._closing = True

    async def follow(self, job_id: str, *, after: int) -> AsyncIterator[ServerSentEvent]:
        """The job's events after event `after` and its progress, until it has ended.

        Facts carry an id, so that a broken stream goes on where it ended; progress is of the moment and has none.
        """
        self._watched[job_id] = self._watched.get(job_id, 0) + 1
        try:
            progress: dict[str, Any] | None = None
            while not self._closing:
                seen = self._known.get(job_id)
                # The status before the rows: a job that has ended before this line has said everything.
                job = await run_in_threadpool(jobs.get, self._db, job_id)
                if job.progress and job.progress != progress:
                    progress = job.progress
                    yield ServerSentEvent(event="progress", data=progress)
                for event in await run_in_threadpool(jobs.events, self._db, job_id, after=after):
                    after = event.id
                    data = {**event.payload, "attempt": event.attempt, "at": event.at}
                    yield ServerSentEvent(event=event.kind, id=str(event.id), data=data)
                if job.status in jobs.TERMINAL:
                    yield ServerSentEvent(event="end", data={"status": job.status, "reason": job.reason})
                    return
                await self._wait(job_id, seen)
        finally:
            self._watched[job_id] -= 1
            if not self._watched[job_id]:
                del self._watched[job_id]
                self._known.pop(job_id, None)

    async def _wait(self, job_id: str, seen: int | None) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._closing or self._known.get(job_id) != seen)
