"""Garbage collection takes what nothing needs, and nothing else, whatever happens at the same time."""

import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from samples import TRAIN, TRAINED
from sqlalchemy import Engine, select, update

from dkl.catalog import resolve
from service import claims, files, jobs, uploads, workdirs
from service.artifacts import Store, store_for
from service.callers import ANONYMOUS, COMMAND_LINE, Caller
from service.collect import Garbage, collect, collect_alone, collect_as
from service.db import now, reading, writing
from service.keys import KeyRequest
from service.keys import create as create_key
from service.moves import TERMINAL
from service.settings import Settings
from service.stored import NeededError, release_files
from service.tables import Artifact, AuditEvent, Chunk, Job, Upload

DAY = 86400.0
EVALUATION = resolve("autoattack-cifar10-linf", {"model": {"timm": "resnet18.a1_in1k"}})
PARTS = [(0, 0), (0, 1)]


@pytest.fixture
def store(settings: Settings) -> Store:
    return store_for(settings)


def keep(db: Engine, store: Store, folder: Path, content: bytes, key_id: str | None = None) -> str:
    path = folder / hashlib.sha256(content).hexdigest()[:8]
    path.write_bytes(content)
    return files.keep(db, store, path, key_id=key_id)


def age(db: Engine, store: Store, *names: str, seconds: float = 2 * DAY) -> None:
    """As if the files had come so long ago."""
    with writing(db) as session:
        session.execute(update(Artifact).where(Artifact.sha256.in_(names)).values(created_at=now() - seconds))
    for name in names:
        os.utime(store.fetch(name), (time.time() - seconds,) * 2)


def begin(db: Engine, store: Store, settings: Settings, sha256: str, caller: Caller = ANONYMOUS) -> Upload:
    return uploads.begin(db, store, settings, name="a file", size=5, sha256=sha256, caller=caller)


def key(db: Engine, settings: Settings, **limits: int) -> Caller:
    row, _ = create_key(db, settings, KeyRequest(name="anna", scope="submit", **limits), caller=COMMAND_LINE)
    return Caller("anna", "submit", row.id)


def names(found: list[Garbage]) -> list[str]:
    return [garbage.name for garbage in found]


# --- what is garbage --------------------------------------------------------------------------------------


def test_only_old_files_without_a_use_are_removed(
    db: Engine, settings: Settings, store: Store, tmp_path: Path
) -> None:
    job = jobs.create(db, TRAIN)
    unused, used, young = (keep(db, store, tmp_path, content) for content in (b"unused", b"used", b"young"))
    with writing(db) as session:
        files.use(session, used, job.id, "checkpoint")
    age(db, store, unused, used)
    stray = hashlib.sha256(b"stray").hexdigest()
    store.put(_file(tmp_path, b"stray"))  # of a worker that died before it could say so
    os.utime(store.fetch(stray), (time.time() - 2 * DAY,) * 2)
    begun = store.put(_file(tmp_path, b"begun"))

    seen = list(collect(db, store, settings, dry_run=True))
    assert {(garbage.name, garbage.why, garbage.size) for garbage in seen} == {
        (unused, "nothing needs it", 6),
        (stray, "the ledger does not know it", 5),
    }
    assert all(store.has(name) for name in (unused, used, young, stray, begun))
    assert list(collect(db, store, settings)) == seen
    assert [store.has(name) for name in (unused, used, young, stray, begun)] == [False, True, True, False, True]
    with reading(db) as session:
        assert set(session.scalars(select(Artifact.sha256))) == {used, young}
    assert list(collect(db, store, settings)) == []


def test_a_ledger_without_any_job_says_nothing_about_what_it_does_not_know(
    db: Engine, settings: Settings, store: Store, tmp_path: Path
) -> None:
    """dklbench gc with another database than the service's must not empty the store."""
    stray = store.put(_file(tmp_path, b"stray"))
    registered = keep(db, store, tmp_path, b"registered")
    age(db, store, stray, registered)
    settings.workdir("0" * 12).mkdir(parents=True)
    os.utime(settings.workdir("0" * 12), (time.time() - 2 * DAY,) * 2)
    assert [(found.name, found.size) for found in collect(db, store, settings)] == [(registered, 10)]
    assert store.has(stray)


def _file(folder: Path, content: bytes) -> Path:
    (folder / "source").write_bytes(content)
    return folder / "source"


def test_a_file_counted_on_again_is_young_again(
    db: Engine, settings: Settings, store: Store, tmp_path: Path
) -> None:
    caller = key(db, settings)
    sha256 = keep(db, store, tmp_path, b"content", caller.key_id)
    age(db, store, sha256)
    assert files.reserve(db, store, sha256, caller)
    assert list(collect(db, store, settings)) == []
    age(db, store, sha256)
    assert keep(db, store, tmp_path, b"content") == sha256
    assert list(collect(db, store, settings)) == []
    age(db, store, sha256)
    assert names(list(collect(db, store, settings))) == [sha256]
    assert not files.reserve(db, store, sha256, caller)


def test_rows_whose_file_is_gone_go_too(db: Engine, settings: Settings, store: Store, tmp_path: Path) -> None:
    sha256 = keep(db, store, tmp_path, b"content")
    age(db, store, sha256)
    store.delete(sha256)
    assert [(g.name, g.size) for g in collect(db, store, settings)] == [(sha256, 0)]
    with reading(db) as session:
        assert session.scalars(select(Artifact)).all() == []


def test_interrupted_writes(db: Engine, settings: Settings, store: Store) -> None:
    settings.artifacts_dir.mkdir(parents=True)
    left = settings.artifacts_dir / ".0123456789abcdef.tmp"
    left.write_bytes(b"half")
    assert list(collect(db, store, settings)) == []
    os.utime(left, (time.time() - 2 * DAY,) * 2)
    assert list(collect(db, store, settings)) == [
        Garbage("interrupted write", left.name, "it was never completed", 4)
    ]
    assert not left.exists()


def test_uploads_that_nobody_goes_on_with(db: Engine, settings: Settings, store: Store) -> None:
    old, young, busy = (begin(db, store, settings, digit * 64) for digit in "abc")
    for upload in (old, young, busy):
        with uploads.locked(uploads.path_of(settings, upload.id)) as file:
            os.write(file, b"1234")
    stray = settings.uploads_dir / ("0" * 32)
    stray.write_bytes(b"stray")
    os.utime(stray, (time.time() - 2 * DAY,) * 2)
    with writing(db) as session:
        session.execute(update(Upload).where(Upload.id != young.id).values(touched_at=now() - 2 * DAY))
    with uploads.locked(uploads.path_of(settings, busy.id)):  # a part that takes its time
        seen = list(collect(db, store, settings, dry_run=True))
        assert {(garbage.name, garbage.size) for garbage in seen} == {(f"{old.id} (a file)", 4), (stray.name, 5)}
        assert list(collect(db, store, settings)) == seen
    assert {path.name for path in settings.uploads_dir.iterdir()} == {young.id, busy.id}
    with pytest.raises(uploads.UnknownUploadError):
        uploads.get(db, old.id, ANONYMOUS)


def test_a_finished_upload_keeps_its_content_until_a_job_should_have_used_it(
    db: Engine, settings: Settings, store: Store, tmp_path: Path
) -> None:
    unused, used = (keep(db, store, tmp_path, content) for content in (b"12345", b"54321"))
    finished = [begin(db, store, settings, sha256) for sha256 in (unused, used)]
    assert all(upload.finished_at is not None for upload in finished)
    job = jobs.create(db, resolve("autoattack-digits-linf", {"model.checkpoint": used}))
    age(db, store, unused, used)
    assert list(collect(db, store, settings)) == []
    with writing(db) as session:
        session.execute(update(Upload).values(touched_at=now() - 2 * DAY, finished_at=now() - 2 * DAY))
    seen = list(collect(db, store, settings, dry_run=True))
    assert names(seen) == [f"{finished[0].id} (a file)", unused]
    assert list(collect(db, store, settings)) == seen
    assert store.has(used)
    jobs.cancel(db, job.id, caller=ANONYMOUS)
    assert names(list(collect(db, store, settings))) == [f"{finished[1].id} (a file)", used]


def test_work_folders_of_jobs_that_have_ended(
    db: Engine, settings: Settings, store: Store, tmp_path: Path
) -> None:
    ended, stopped, living = (jobs.create(db, TRAIN) for _ in range(3))
    claim = claims.claim(db, ended.id, worker="w", lease_seconds=60)
    assert claim is not None
    claims.finish(db, claim, TRAINED)
    jobs.cancel(db, stopped.id, caller=ANONYMOUS)  # it may be resumed
    unknown, recent = "0" * 12, "1" * 12
    for name in (ended.id, stopped.id, living.id, unknown, recent, "notes"):
        (settings.workdir(name) / "folder").mkdir(parents=True)
        (settings.workdir(name) / "folder" / "last.pt").write_bytes(bytes(1000))
    (tmp_path / "elsewhere").mkdir()
    settings.workdir("2" * 12).symlink_to(tmp_path / "elsewhere")
    os.utime(settings.workdir(unknown), (time.time() - 2 * DAY,) * 2)
    seen = list(collect(db, store, settings, dry_run=True))
    assert {(garbage.name, garbage.why) for garbage in seen} == {
        (ended.id, f"job {ended.id} has ended"),
        (unknown, "no job has this id"),
    }
    assert all(garbage.size >= 1000 for garbage in seen)
    assert list(collect(db, store, settings)) == seen
    left = {path.name for path in settings.workdir("").iterdir()}
    assert left == {stopped.id, living.id, recent, "notes", "2" * 12}
    assert (tmp_path / "elsewhere").is_dir()


# --- what a job could be resumed from ---------------------------------------------------------------------


@pytest.fixture
def stopped(db: Engine, settings: Settings, store: Store, tmp_path: Path) -> Job:
    """An evaluation that was canceled when one of its two chunks was done."""
    job = jobs.create(db, EVALUATION)
    claim = claims.claim(db, job.id, worker="w", lease_seconds=60)
    assert claim is not None
    claims.announce(db, claim, PARTS)
    assert [claims.take_chunk(db, claim, PARTS) for _ in range(2)] == [(0, 0), (0, 0)]
    claims.chunk_done(db, claim, (0, 0), found_sha256=keep(db, store, tmp_path, b"verdicts"))
    claims.take_chunk(db, claim, PARTS)
    settings.workdir(job.id).mkdir(parents=True)
    (settings.workdir(job.id) / "last.pt").write_bytes(b"state")
    jobs.cancel(db, job.id)
    claims.stopped(db, claim)
    return jobs.get(db, job.id)


def end_long_ago(db: Engine, job: Job) -> None:
    with writing(db) as session:
        session.get_one(Job, job.id).finished_at = job.created_at - 2 * DAY


def chunks(db: Engine) -> list[tuple[claims.Part, int | None, bool]]:
    """Each with its holder, and whether its verdicts are known."""
    with reading(db) as session:
        found = session.scalars(select(Chunk).order_by(Chunk.batch))
        return [((chunk.stage, chunk.batch), chunk.attempt, chunk.found_sha256 is not None) for chunk in found]


def test_a_canceled_evaluation_goes_on_with_the_verdicts_that_it_had(
    db: Engine, settings: Settings, store: Store, stopped: Job
) -> None:
    age(db, store, hashlib.sha256(b"verdicts").hexdigest())
    assert list(collect(db, store, settings)) == []
    assert chunks(db) == [((0, 0), 1, True), ((0, 1), None, False)]
    jobs.resume(db, stopped.id)
    end_long_ago(db, stopped)  # it counts no more
    assert list(collect(db, store, settings)) == []
    claim = claims.claim(db, stopped.id, worker="w", lease_seconds=60)
    assert claim is not None
    assert list(claims.chunks_done(db, claim)) == [(0, 0)]
    assert claims.take_chunk(db, claim, PARTS) == (0, 1)
    assert (settings.workdir(stopped.id) / "last.pt").read_bytes() == b"state"


def test_after_a_while_it_cannot_go_on_but_begins_anew(
    db: Engine, settings: Settings, store: Store, stopped: Job
) -> None:
    sha256 = hashlib.sha256(b"verdicts").hexdigest()
    age(db, store, sha256)
    end_long_ago(db, stopped)
    seen = list(collect(db, store, settings, dry_run=True))
    assert [(garbage.what, garbage.name) for garbage in seen] == [
        ("work folder", stopped.id),
        ("verdicts", stopped.id),
    ]
    assert len(chunks(db)) == 2
    assert names(list(collect(db, store, settings))) == [stopped.id, stopped.id, sha256]
    assert chunks(db) == []
    assert not settings.workdir(stopped.id).exists()
    assert list(collect(db, store, settings)) == []
    jobs.resume(db, stopped.id)
    claim = claims.claim(db, stopped.id, worker="w", lease_seconds=60)
    assert claim is not None
    assert claims.chunks_done(db, claim) == {}


def test_a_job_that_is_resumed_meanwhile_keeps_its_folder(db: Engine, settings: Settings, stopped: Job) -> None:
    end_long_ago(db, stopped)
    [(folder, _)] = workdirs.abandoned(db, settings)
    jobs.resume(db, stopped.id)
    assert not workdirs.remove(db, settings, folder)
    assert (folder / "last.pt").exists()


def test_an_interrupted_removal_is_completed(
    db: Engine, settings: Settings, store: Store, stopped: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever resumes finds all of a folder, or nothing."""
    end_long_ago(db, stopped)
    [(folder, _)] = workdirs.abandoned(db, settings)
    with monkeypatch.context() as killed:
        killed.setattr("shutil.rmtree", lambda *_, **__: None)
        workdirs.remove(db, settings, folder)
    assert not folder.exists()
    assert [path.name for path, _ in workdirs.abandoned(db, settings)] == [f"{stopped.id}.removed"]
    jobs.resume(db, stopped.id)
    folder.mkdir()  # by its next worker
    list(collect(db, store, settings))
    assert list(settings.workdir("").iterdir()) == [folder]


def test_a_person_who_collects_is_in_the_audit_log(
    db: Engine, settings: Settings, store: Store, tmp_path: Path
) -> None:
    age(db, store, keep(db, store, tmp_path, b"content"))
    assert len(collect_as(db, store, settings, COMMAND_LINE)) == 1
    with reading(db) as session:
        (event,) = session.scalars(select(AuditEvent))
    assert (event.actor, event.action, event.detail) == (
        "command line",
        "garbage.collect",
        {"things": 1, "size": 7},
    )


def test_one_process_collects(db: Engine, settings: Settings, store: Store, tmp_path: Path) -> None:
    age(db, store, keep(db, store, tmp_path, b"content"), keep(db, store, tmp_path, b"more"))
    inside: list[int] = []

    def other_and_stop() -> bool:
        if db.dialect.name == "postgresql":
            inside.append(len(list(store.listing())))
            collect_alone(db, store, settings, lambda: False)
            inside.append(len(list(store.listing())))
        return True

    collect_alone(db, store, settings, other_and_stop)
    assert inside in ([], [1, 1])
    assert len(list(store.listing())) == 1  # it was told to stop
    collect_alone(db, store, settings, lambda: False)
    assert list(store.listing()) == []


# --- races ------------------------------------------------------------------------------------------------


def test_what_is_put_in_or_counted_on_meanwhile_is_there_at_the_end(
    db: Engine, settings: Settings, store: Store, tmp_path: Path
) -> None:
    """Old garbage that collectors remove, while jobs put the same in again, or reserve it, and use it."""
    caller = key(db, settings)
    job_ids = [jobs.create(db, TRAIN).id for _ in range(3)]
    contents = [b"content %d" % number for number in range(16)]
    old = [keep(db, store, tmp_path, content, caller.key_id) for content in contents]
    age(db, store, *old)
    errors: list[BaseException] = []

    def user(number: int) -> None:
        for content, sha256 in zip(contents, old, strict=True):
            if number == 2:
                if not files.reserve(db, store, sha256, caller):
                    continue
            else:
                (tmp_path / f"user {number}").write_bytes(content)
                assert files.keep(db, store, tmp_path / f"user {number}", key_id=caller.key_id) == sha256
            with writing(db) as session:
                files.use(session, sha256, job_ids[number], "checkpoint")
            assert b"".join(store.read(sha256)) == content

    def collector(number: int) -> None:
        for _ in range(2):
            list(collect(db, store, settings))

    def guarded(work: Callable[[int], None], number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    parts = [(user, 0), (collector, 0), (user, 1), (collector, 1), (user, 2)]
    threads = [threading.Thread(target=guarded, args=part) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert {stored.sha256 for stored in store.listing()} == set(old)
    with reading(db) as session:
        assert set(session.scalars(select(Artifact.sha256))) == set(old)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_put_between_the_look_and_the_removal(
    db: Engine, settings: Settings, store: Store, tmp_path: Path, moment: str
) -> None:
    """The two orders in which a writer and a collector can meet, each forced."""
    sha256 = keep(db, store, tmp_path, b"content")
    age(db, store, sha256)
    path = _file(tmp_path, b"content")

    class Slow(type(store)):  # type: ignore[misc]
        """A store whose caller is overtaken at the worst moment."""

        def delete(self, name: str) -> None:
            writer.start()
            time.sleep(0.1)  # the writer has found the file there by now, and waits for the lock
            super().delete(name)

    def write() -> None:
        files.keep(db, store, path, key_id=None)

    writer = threading.Thread(target=write)
    if moment == "before":
        writer.start()
        writer.join()
        assert files.drop(db, store, sha256, idle_seconds=DAY) is None
    else:
        assert files.drop(db, Slow(settings.artifacts_dir), sha256, idle_seconds=DAY) == 7
        writer.join()
    assert b"".join(store.read(sha256)) == b"content"
    with reading(db) as session:
        assert session.get(Artifact, sha256) is not None


# --- freeing ----------------------------------------------------------------------------------------------


def trained(db: Engine, caller: Caller, *left: tuple[str, str]) -> str:
    """An ended job that left files, as (role, sha256)."""
    job = jobs.create(db, TRAIN, caller=caller)
    with writing(db) as session:
        for role, sha256 in left:
            files.use(session, sha256, job.id, role)
    jobs.cancel(db, job.id, caller=caller)
    assert jobs.get(db, job.id).status in TERMINAL
    return job.id


def test_an_ended_jobs_files_are_freed(db: Engine, settings: Settings, store: Store, tmp_path: Path) -> None:
    caller = key(db, settings)
    old, shared, young = (
        keep(db, store, tmp_path, content, caller.key_id) for content in (b"old", b"shared", b"y")
    )
    job_id = trained(db, caller, ("checkpoint", old), ("evidence", shared), ("checkpoint", young))
    other = trained(db, caller, ("checkpoint", shared))
    age(db, store, old, shared)
    freed = release_files(db, store, job_id, caller)
    assert (freed.freed, freed.later, freed.needed_by) == (3, 1, {shared: [other]})
    assert [store.has(name) for name in (old, shared, young)] == [False, True, True]
    with reading(db) as session:
        assert files.storage_of(session, caller.key_id) == 7
    again = release_files(db, store, job_id, caller)
    assert (again.freed, again.later, again.needed_by) == (0, 0, {})


def test_files_are_not_freed_under_jobs_that_wait_for_them(
    db: Engine, settings: Settings, store: Store, tmp_path: Path
) -> None:
    sha256 = keep(db, store, tmp_path, b"content")
    running = jobs.create(db, TRAIN)
    with pytest.raises(NeededError, match=f"job {running.id} is queued and needs its files; cancel it"):
        release_files(db, store, running.id, ANONYMOUS)
    ended = trained(db, ANONYMOUS, ("checkpoint", sha256))
    waiting = jobs.create(db, resolve("autoattack-digits-linf", {"model.checkpoint": sha256}))
    with pytest.raises(NeededError, match=f"the checkpoint of job {ended} is needed by {waiting.id}; cancel them"):
        release_files(db, store, ended, ANONYMOUS)
    jobs.cancel(db, waiting.id, caller=ANONYMOUS)
    release_files(db, store, ended, ANONYMOUS)


def test_files_are_not_freed_under_the_children_of_a_job(
    db: Engine, settings: Settings, store: Store, tmp_path: Path
) -> None:
    parent = jobs.create(db, TRAIN)
    child = jobs.create(db, resolve("autoattack-digits-linf", {"model.job": parent.id}))
    claim = claims.claim(db, parent.id, worker="w", lease_seconds=60)
    assert claim is not None
    with writing(db) as session:  # as if it had succeeded, without everything that a result holds
        session.get_one(jobs.Job, parent.id).status = "succeeded"
    with pytest.raises(NeededError, match=f"is needed by {child.id}"):
        release_files(db, store, parent.id, ANONYMOUS)


# --- accounts ---------------------------------------------------------------------------------------------


def test_a_key_is_charged_for_what_it_caused_alone(
    db: Engine, settings: Settings, store: Store, tmp_path: Path
) -> None:
    anna, bert = key(db, settings, max_storage=20), key(db, settings)
    shared = keep(db, store, tmp_path, b"12345", bert.key_id)
    keep(db, store, tmp_path, b"12345", anna.key_id)  # nothing needed it: whoever brings it again has it
    keep(db, store, tmp_path, b"123", anna.key_id)
    begin(db, store, settings, "a" * 64, anna)
    with reading(db) as session:
        assert [files.storage_of(session, who) for who in (anna.key_id, bert.key_id, None)] == [13, 0, 0]
    job = jobs.create(db, TRAIN, caller=anna)
    with writing(db) as session:
        files.use(session, shared, job.id, "checkpoint")
    keep(db, store, tmp_path, b"12345", bert.key_id)
    with writing(db) as session:
        assert files.storage_of(session, bert.key_id) == 0
        files.require_quota(session, anna.key_id, 7)
        files.require_quota(session, bert.key_id, 2**50)
        files.require_quota(session, None, 2**50)
        with pytest.raises(
            files.QuotaError, match="stores 13 bytes of the 20 bytes that it may, and 8 bytes more do"
        ):
            files.require_quota(session, anna.key_id, 8)


def test_content_is_nameable_by_those_who_could_read_it(
    db: Engine, settings: Settings, store: Store, tmp_path: Path
) -> None:
    anna, bert = key(db, settings), key(db, settings)
    sha256 = keep(db, store, tmp_path, b"12345", anna.key_id)
    assert [files.reserve(db, store, sha256, who) for who in (anna, bert, COMMAND_LINE)] == [True, False, True]
    begin(db, store, settings, sha256, bert)
    assert not files.reserve(db, store, sha256, bert)  # to have announced it proves nothing
    trained(db, anna, ("checkpoint", sha256))
    assert files.reserve(db, store, sha256, bert)
    assert not files.reserve(db, store, "a" * 64, anna)
