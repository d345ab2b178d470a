"""The list of jobs: who is on which page, their places in the queues, and what a look at it costs."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pydantic import ValidationError
from samples import JUDGED, TRAIN, TRAINED
from sqlalchemy import Engine, event, insert, select

from dkl.catalog import resolve
from service import claims, jobs, waiting
from service.callers import ANONYMOUS, COMMAND_LINE, Caller
from service.db import clock, reading, writing
from service.joblist import PAGE, JobList, Question, find, newest
from service.jobs import Order
from service.tables import ApiKey, Job

PERSON = resolve("ikl-at-digits", {})


def order(db: Engine, caller: Caller = ANONYMOUS, **how: object) -> str:
    return jobs.create_all(db, [Order(TRAIN, **how)], caller=caller, max_queued=None)[0].id


def ask(db: Engine, caller: Caller = ANONYMOUS, **question: object) -> JobList:
    return find(db, Question(**question), caller)


def ids(found: JobList) -> list[str]:
    return [job.id for job in found.jobs]


def start(db: Engine, job_id: str) -> claims.Claim:
    claim = claims.claim(db, job_id, worker="w", lease_seconds=60)
    assert claim is not None
    return claim


def many(db: Engine, number: int, first: int = 0) -> None:
    """Jobs straight into the table, a second apart; every second one waits for the job before it."""
    template = jobs.create(db, TRAIN, name="natural-digits").id
    with writing(db) as session:
        row = dict(session.execute(select(Job.__table__).where(Job.id == template)).mappings().one())
        rows = [
            {**row, "id": f"{n:012x}", "created_at": row["created_at"] + n, "queue": f"q{n % 3}"}
            | {"parent_id": f"{n - 1:012x}" if n % 2 else None}
            for n in range(first, first + number)
        ]
        for start in range(0, number, 2):  # parents first
            session.execute(insert(Job.__table__), rows[start : start + 1])
        session.execute(insert(Job.__table__), rows[1::2])


@contextmanager
def statements(db: Engine) -> Iterator[list[str]]:
    sent: list[str] = []

    def note(connection: object, cursor: object, statement: str, *_: object) -> None:
        sent.append(statement)

    event.listen(db, "before_cursor_execute", note)
    yield sent
    event.remove(db, "before_cursor_execute", note)


# --- filters ----------------------------------------------------------------------------------------------


def test_every_filter_narrows(db: Engine) -> None:
    failed, done = order(db, name="first"), order(db, name="second")
    claims.fail(db, start(db, failed), "loss is nan")
    claims.finish(db, start(db, done), TRAINED)
    evaluation = jobs.create(db, resolve("autoattack-digits-linf", {"model.job": done})).id
    claims.finish(db, start(db, evaluation), JUDGED)
    other = jobs.create(db, resolve("ikl-at-cifar10-wrn-34-10", {})).id
    assert ids(ask(db)) == [other, evaluation, done, failed]
    assert ids(ask(db, status="failed")) == [failed]
    assert ids(ask(db, status="succeeded", kind="train")) == [done]
    assert ids(ask(db, kind="evaluate")) == [evaluation]
    assert ids(ask(db, dataset="cifar10")) == [other]
    assert ids(ask(db, dataset="cifar100")) == []
    found = ask(db, kind="train", status="queued")
    assert (found.total, found.counts) == (1, {"queued": 1, "succeeded": 1, "failed": 1})
    assert found.datasets == ["cifar10", "digits"]
    assert found.parents == {}
    [parent] = ask(db, kind="evaluate").parents.values()
    assert (parent.id, parent.name, parent.status) == (done, "second", "succeeded")


def test_mine_are_those_of_my_key(db: Engine) -> None:
    with writing(db) as session:
        key = ApiKey(
            id="a" * 12, name="anna", scope="submit", digest="x", created_at=clock(session), created_by="x"
        )
        session.add(key)
    anna = Caller("anna", "submit", "a" * 12)
    mine, others = order(db, anna), order(db)
    assert ids(ask(db, anna, mine=True)) == [mine]
    assert ids(ask(db, anna)) == [others, mine]
    assert ids(ask(db, mine=True)) == [others]
    assert ids(ask(db, COMMAND_LINE, mine=True)) == [others]  # an admin's own, not everybody's


def test_searching_names_and_ids(db: Engine) -> None:
    plain, percent, umlaut = (order(db, name=name) for name in ("Natural-Digits", "50%_robust", None))
    assert ids(ask(db, search="natural")) == [plain]
    assert ids(ask(db, search=" DIGITS ")) == [plain]
    assert ids(ask(db, search="%")) == [percent]
    assert ids(ask(db, search="l_r")) == []
    assert ids(ask(db, search=umlaut[:8].upper())) == [umlaut]
    assert ids(ask(db, search=umlaut[4:])) == []
    assert ids(ask(db, search="'; DROP TABLE jobs; --")) == []
    assert len(ids(ask(db, search="   "))) == 3


@pytest.mark.parametrize(
    "bad",
    [
        {"status": "lucky"}, {"kind": "teleport"}, {"page": 0}, {"page": 10**9}, {"page": "two"},
        {"dataset": "a\x00b"}, {"dataset": "a" * 81}, {"search": "a\x00b"}, {"search": "a" * 101},
        {"mine": "perhaps"},
    ],
)  # fmt: skip
def test_what_cannot_be_asked(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Question.model_validate(bad)


def test_what_a_form_leaves_open_asks_for_all() -> None:
    assert Question.model_validate({"status": "", "kind": "", "dataset": "", "search": ""}) == Question()


# --- pages and places -------------------------------------------------------------------------------------


def test_pages_have_every_job_once_newest_first(db: Engine) -> None:
    many(db, 120)
    pages = [ask(db, page=page) for page in (1, 2, 3)]
    assert [len(page.jobs) for page in pages] == [PAGE, PAGE, 21]
    assert {(page.total, page.pages) for page in pages} == {(121, 3)}
    seen = [job for page in pages for job in page.jobs]
    assert [job.created_at for job in seen] == sorted((job.created_at for job in seen), reverse=True)
    assert len({job.id for job in seen}) == 121
    beyond = ask(db, page=4)
    assert (beyond.jobs, beyond.total) == ([], 121)


def test_places_are_those_of_the_job_pages(db: Engine) -> None:
    urgent = [
        order(db, priority=priority, queue=queue) for queue in ("gpu", "night") for priority in (0, 5, 0, -1)
    ]
    start(db, urgent[2])
    found = ask(db)
    assert found.places == {job.id: waiting.position(db, job) for job in found.jobs if job.status == "queued"}
    assert sorted(found.places.values()) == [1, 1, 2, 2, 3, 3, 4]


@pytest.mark.parametrize("question", [{}, {"status": "queued", "kind": "train", "search": "natural"}])
def test_a_look_costs_the_same_however_many_there_are(db: Engine, question: dict[str, str]) -> None:
    many(db, 4)
    with statements(db) as few:
        ask(db, **question)
    many(db, 200, first=1000)
    with statements(db) as lots:
        found = ask(db, **question)
    assert len(found.jobs) == PAGE
    assert len(found.places) == PAGE
    assert len(found.parents) >= PAGE / 2
    assert len(lots) == len(few) <= 9, lots


# --- for programs -----------------------------------------------------------------------------------------


def test_a_program_turns_pages_by_the_last_job(db: Engine) -> None:
    many(db, 30)
    with writing(db) as session:  # some came at the very same moment
        for job in session.scalars(select(Job).where(Job.id < f"{10:012x}")):
            job.created_at = 1.0
    seen: list[str] = []
    while page := newest(db, status=None, kind=None, limit=7, before=seen[-1] if seen else None):
        seen += [job.id for job in page]
    with reading(db) as session:
        everything = session.scalars(select(Job.id).order_by(Job.created_at.desc(), Job.id.desc())).all()
    assert seen == everything
    assert newest(db, status="failed", kind=None, limit=7, before=None) == []
    assert len(newest(db, status="queued", kind="train", limit=7, before=seen[0])) == 7
    with pytest.raises(jobs.UnknownJobError):
        newest(db, status=None, kind=None, limit=7, before="f" * 12)
