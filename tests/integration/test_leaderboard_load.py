"""Many rows and many readers: pages of a ranking, what a look at it costs, streams that share their reading."""

import asyncio
import re
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
from samples import EPOCH, JUDGED, STARTED
from sqlalchemy import Engine, delete, event, insert, select
from starlette.testclient import TestClient

from dkl.catalog import resolve
from dkl.events import Finished
from service import claims, jobs
from service.app import create_app
from service.db import reading, writing
from service.leaderboard import Question, find
from service.settings import Settings
from service.streams import Streams
from service.tables import Job

T = TypeVar("T")


def in_a_loop(work: Coroutine[Any, Any, T]) -> T:
    """In a thread of its own: this one may have a loop, of a browser that another test drives."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def evaluations(db: Engine, accuracies: list[float]) -> None:
    """Succeeded ones, on the digits' board, straight into the table."""
    template = evaluation(db, 0.0)
    with writing(db) as session:
        row = session.execute(select(Job.__table__).where(Job.id == template)).mappings().one()
        session.execute(delete(Job.__table__).where(Job.id == "none"))
        copies = [
            dict(row)
            | {
                "id": f"{number:012x}",
                "robust_accuracy": robust,
                "result": {**row["result"], "robust_accuracy": robust},
            }
            for number, robust in enumerate(accuracies)
        ]
        session.execute(insert(Job.__table__), copies)


def evaluation(db: Engine, robust: float) -> str:
    """One that goes through the ledger."""
    job = jobs.create(db, resolve("autoattack-digits-linf", {"model": {"checkpoint": "a" * 64}}))
    claim = claims.claim(db, job.id, worker="w", lease_seconds=60)
    assert claim is not None
    claims.finish(db, claim, Finished(result=JUDGED.result.model_copy(update={"robust_accuracy": robust})))
    return job.id


@contextmanager
def statements(db: Engine) -> Iterator[list[str]]:
    """What is sent to the database meanwhile."""
    sent: list[str] = []

    def note(connection: object, cursor: object, statement: str, *_: object) -> None:
        sent.append(statement)

    event.listen(db, "before_cursor_execute", note)
    yield sent
    event.remove(db, "before_cursor_execute", note)


def digits(**question: object) -> Question:
    return Question(dataset="digits", **question)  # type: ignore[arg-type]


def test_pages_of_a_long_ranking(db: Engine) -> None:
    evaluations(db, [number / 250 for number in range(250)])
    first = find(db, digits(limit=100))
    assert (first.total, first.pages, len(first.rows)) == (251, 3, 100)
    assert [row.rank for row in first.rows[:3]] == [1, 2, 3]
    last = find(db, digits(page=3, limit=100))
    assert [row.rank for row in last.rows[-3:]] == [249, 250, 250]  # the two with accuracy 0 share a rank
    assert find(db, digits(page=4, limit=100)).rows == []
    every = [row.job_id for page in (1, 2, 3) for row in find(db, digits(page=page, limit=100)).rows]
    assert len(set(every)) == 251
    upwards = find(db, digits(sort="robust_accuracy", limit=7))
    assert (upwards.pages, [row.rank for row in upwards.rows]) == (36, [250, 250, 249, 248, 247, 246, 245])
    assert find(db, digits(search="no such model")).total == 0


def test_the_page_leads_to_the_others(db: Engine, settings: Settings, database_url: str) -> None:
    evaluations(db, [number / 250 for number in range(250)])
    app = create_app(settings.model_copy(update={"database_url": database_url}))
    with TestClient(app, base_url="http://127.0.0.1", headers={"Accept": "text/html"}) as client:
        page = client.get("/?dataset=digits&sort=name&page=2").text
        assert "page 2 of 6" in page
        links = re.findall(r'href="/\?([^"]*page=\d[^"]*)"', page)
        assert ["page=3" in link for link in links] == [True]  # the first one is what one gets anyway
        assert all("sort=name" in link for link in links)
        beyond = client.get("/?dataset=digits&page=9")
        assert (beyond.status_code, "There is no page 9 here" in beyond.text) == (404, True)


def test_a_look_reads_only_what_is_new(db: Engine) -> None:
    evaluations(db, [0.1, 0.2])
    find(db, digits())
    with statements(db) as sent:
        assert find(db, digits()).total == 3
    assert len([statement for statement in sent if statement.startswith("SELECT")]) == 2  # anything new?
    newest = evaluation(db, 0.9)
    assert find(db, digits()).rows[0].job_id == newest
    with writing(db) as session:
        session.execute(delete(Job).where(Job.id.in_(["000000000000", "000000000001"])))
    assert find(db, digits()).total == 2


def test_the_streams_of_one_job_share_their_reading(db: Engine) -> None:
    job = jobs.create(db, resolve("natural-digits", {}))
    claim = claims.claim(db, job.id, worker="w", lease_seconds=60)
    assert claim is not None
    told = in_a_loop(_followed(db, claim, streams=50))
    with reading(db) as session:
        assert session.get_one(Job, job.id).status == "failed"
    written = [str(row.id) for row in jobs.events(db, job.id)]
    assert told == [written] * 50


async def _followed(db: Engine, claim: claims.Claim, streams: int) -> list[list[str]]:
    """What each of so many streams is told while the job says something, and ends; one comes late."""
    watching = Streams(db)
    tasks = [asyncio.create_task(_ids(watching, claim.job_id)) for _ in range(streams - 1)]
    await asyncio.sleep(0.1)
    await watching.look()
    for number in range(5):
        claims.append(db, claim, STARTED, EPOCH.model_copy(update={"epoch": number}))
        with statements(db) as sent:
            await watching.look()
            await asyncio.sleep(0.02)
        assert len([s for s in sent if s.startswith("SELECT")]) <= 3, sent
        if number == 2:
            tasks.append(asyncio.create_task(_ids(watching, claim.job_id)))
            await asyncio.sleep(0.1)
    claims.fail(db, claim, "it was meant to")
    await watching.look()
    return await asyncio.wait_for(asyncio.gather(*tasks), 10)


async def _ids(watching: Streams, job_id: str) -> list[str]:
    return [event.id async for event in watching.follow(job_id, after=0) if event.id is not None]


@pytest.mark.parametrize("after", [0, 10**12, 10**30])
def test_a_stream_from_nowhere_takes_nothing_from_the_others(db: Engine, after: int) -> None:
    job = jobs.create(db, resolve("natural-digits", {}))

    async def follow() -> list[list[str]]:
        watching = Streams(db)
        strange = asyncio.create_task(anext(watching.follow(job.id, after=after), None))  # type: ignore[arg-type]
        await asyncio.sleep(0.1)
        honest = asyncio.create_task(_ids(watching, job.id))
        await asyncio.sleep(0.1)
        jobs.cancel(db, job.id)
        await watching.look()
        await asyncio.wait_for(strange, 10)
        return [await asyncio.wait_for(honest, 10)]

    (ids,) = in_a_loop(follow())
    assert ids == [str(row.id) for row in jobs.events(db, job.id)]
