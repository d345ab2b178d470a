"""A backup and what comes out of it: the same pages, files, keys, from either database and store into either."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from databases import Postgres, ServerAwayError
from exhibits import Shown, judged
from installation import Installation, furnish, seen, with_secret
from moto.server import ThreadedMotoServer
from samples import TRAIN
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from service import backup as backup_module
from service import claims, jobs, webhooks
from service.backup import backup
from service.backup_check import check
from service.backup_parts import BackupError, Manifest
from service.callers import COMMAND_LINE, Caller
from service.collect import collect
from service.db import now, writing
from service.restore import restore
from service.settings import Settings
from service.stored import release_files
from service.tables import Delivery

Make = Callable[..., Installation]
STATIC = ("api_keys", "artifacts", "artifact_uses", "uploads", "reported_rows", "verifications", "deliveries")
"""Tables that a restore leaves as they were; so it does the events and the audit log, and adds to them."""


@pytest.fixture(scope="module")
def bucket_server() -> Iterator[str]:
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def make(settings: Settings, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Make]:
    """Installations, each in a folder of its own: on which database, with which store."""
    made: list[Installation] = []
    lent: list[str] = []

    def make(name: str, database: str = "sqlite", store: str = "folder", *, migrated: bool = True) -> Installation:
        changes: dict[str, Any] = {"data_dir": tmp_path / name}
        if database == "postgresql":
            server: Postgres = request.getfixturevalue("postgres")
            try:
                lent.append(server.lend())
            except ServerAwayError as error:
                pytest.skip(str(error))
            changes["database_url"] = lent[-1]
        if store == "bucket":
            changes["store"] = f"s3://{_bucket(request, tmp_path / name)}/some/prefix"
        made.append(Installation.at(with_secret(settings.model_copy(update=changes)), migrated=migrated))
        return made[-1]

    yield make
    for installation in made:
        installation.db.dispose()
    for url in lent:
        request.getfixturevalue("postgres").take_back(url)


def _bucket(request: pytest.FixtureRequest, folder: Path) -> str:
    monkeypatch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
    monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("bucket_server"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    bucket = hashlib.sha256(str(folder).encode()).hexdigest()[:20]
    boto3.client("s3").create_bucket(Bucket=bucket)
    return bucket


def back_up(here: Installation, target: Path, **how: Any) -> Manifest:
    return backup(here.db, here.store, here.settings, target, caller=COMMAND_LINE, **how)


def bring_back(there: Installation, target: Path) -> Manifest:
    return restore(there.db, there.store, there.settings, target, caller=COMMAND_LINE)


def of_job(rows: dict[str, Any], job_id: str) -> list[dict[str, Any]]:
    return [row for row in rows["job_events"] if row["job_id"] == job_id]


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        (("sqlite", "folder"), ("sqlite", "folder")),
        (("sqlite", "folder"), ("postgresql", "bucket")),
        (("postgresql", "bucket"), ("sqlite", "folder")),
        *(
            pytest.param(*pair, marks=pytest.mark.long)
            for pair in (
                (("sqlite", "folder"), ("postgresql", "folder")),
                (("postgresql", "folder"), ("sqlite", "folder")),
                (("postgresql", "folder"), ("postgresql", "folder")),
                (("sqlite", "bucket"), ("sqlite", "bucket")),
            )
        ),
    ],
    ids="-".join,
)
def test_everything_comes_back(make: Make, tmp_path: Path, source: Any, destination: Any) -> None:
    here, target = make("here", *source), tmp_path / "backup"
    contents = furnish(here, tmp_path)
    before, rows = seen(here, contents), here.rows()
    manifest = back_up(here, target)
    assert manifest.missing == ()
    assert check(target) == (manifest, [])
    assert {name: part.rows for name, part in manifest.tables.items()} == {
        name: len(found) for name, found in rows.items() if name != "alembic_version"
    }

    there = make("there", *destination, migrated=False)
    assert bring_back(there, target) == manifest
    after = there.rows()
    assert {name: after[name] for name in STATIC} == {name: rows[name] for name in STATIC}
    for name in ("job_events", "audit_events"):
        assert after[name][: len(rows[name])] == rows[name]
    ended = {row["id"]: row for row in rows["jobs"] if row["id"] in contents.ended}
    assert {row["id"]: row for row in after["jobs"] if row["id"] in ended} == ended
    assert seen(there, contents) == before
    assert {stored.sha256: stored.size for stored in there.store.listing()} == {
        stored.sha256: stored.size for stored in here.store.listing()
    }
    assert list(collect(there.db, there.store, there.settings)) == []


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_what_was_under_way_goes_on(make: Make, tmp_path: Path, database: str) -> None:
    here, target = make("here", database), tmp_path / "backup"
    contents = furnish(here, tmp_path)
    back_up(here, target)
    there = make("there", database, migrated=False)
    bring_back(there, target)
    rows = there.rows()
    assert rows["seats"] == rows["workers"] == []
    for job_id in (contents.training, contents.judging):
        job = jobs.get(there.db, job_id)
        assert (job.status, job.attempt, job.sent_at, job.losses) == ("queued", 1, None, 0)
        assert "restored from a backup of 20" in str(job.reason)
    canceled = jobs.get(there.db, contents.cancelling)
    assert canceled.status == "canceled"
    assert jobs.get(there.db, contents.waiting).status == "queued"
    assert jobs.get(there.db, contents.children[0]).parent_id == contents.training
    assert [(row["batch"], row["attempt"] is None, bool(row["found_sha256"])) for row in rows["chunks"]] == [
        (0, False, True),
        (1, True, False),
        (2, True, False),
    ]
    claim = claims.claim(there.db, contents.judging, worker="new", lease_seconds=60)
    assert claim is not None
    assert claim.attempt == 2
    assert list(claims.chunks_done(there.db, claim)) == [(0, 0)]
    assert claims.take_chunk(there.db, claim, [(0, 0), (0, 1), (0, 2)]) == (0, 1)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_numbers_go_on_after_the_highest(make: Make, tmp_path: Path, database: str) -> None:
    here, target = make("here", "sqlite"), tmp_path / "backup"
    contents = furnish(here, tmp_path)
    back_up(here, target)
    there = make("there", database, migrated=False)
    bring_back(there, target)
    tables = ("job_events", "audit_events")
    highest = {name: max(row["id"] for row in there.rows()[name]) for name in tables}
    jobs.cancel(there.db, contents.waiting, caller=COMMAND_LINE)  # says an event, and notes who did it
    for name in tables:
        new = [row["id"] for row in there.rows()[name] if row["id"] > highest[name]]
        assert new == [highest[name] + 1]


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_the_audit_log_says_so_and_still_refuses_changes(make: Make, tmp_path: Path, database: str) -> None:
    here, target = make("here", database), tmp_path / "backup"
    furnish(here, tmp_path)
    manifest = back_up(here, target)
    assert here.rows()["audit_events"][-1]["action"] == "backup.create"
    there = make("there", database, migrated=False)
    bring_back(there, target)
    last = there.rows()["audit_events"][-1]
    assert (last["action"], last["actor"]) == ("backup.restore", "command line")
    assert last["detail"]["made_at"] == manifest.made_at
    for statement in ("UPDATE audit_events SET actor = 'me'", "DELETE FROM audit_events"):
        with pytest.raises(DBAPIError, match="append-only"), there.db.begin() as connection:
            connection.execute(text(statement))


def test_webhooks_that_arrived_are_not_sent_again(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, target = make("here"), tmp_path / "backup"
    furnish(here, tmp_path)
    back_up(here, target)
    there = make("there", migrated=False)
    bring_back(there, target)
    posted: list[str] = []

    def post(url: str, headers: dict[str, str], *_: object) -> None:
        posted.append(headers["webhook-id"])

    monkeypatch.setattr(webhooks, "post", post)
    with writing(there.db) as session:
        due = session.scalars(select(Delivery).where(Delivery.due_at.is_not(None))).one()
        due.due_at = session.scalar(select(now()))
    webhooks.deliver_due(there.db, there.settings)
    assert posted == ["1" * 32]


# --- while the service runs -------------------------------------------------------------------------------


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_it_is_of_one_moment_while_jobs_come_and_end(
    make: Make, tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every table another job comes, and while files are copied one ends: none of it is in the backup."""
    here, target = make("here", database), tmp_path / "backup"
    contents = furnish(here, tmp_path)
    rows, come, read_table = here.rows(), [], backup_module._rows

    def disturbed(*of: Any) -> Iterator[dict[str, Any]]:
        come.append(jobs.create(here.db, TRAIN.model_copy(update={"seed": 1000 + len(come)})).id)
        yield from read_table(*of)

    def meanwhile(what: str, done: int, total: int) -> None:
        if what == "files" and done == 1:
            jobs.cancel(here.db, contents.waiting, caller=COMMAND_LINE)

    monkeypatch.setattr(backup_module, "_rows", disturbed)
    manifest = back_up(here, target, report=meanwhile)
    assert len(come) == len(manifest.tables)
    counts = {name: len(found) for name, found in rows.items() if name != "alembic_version"}
    assert {name: part.rows for name, part in manifest.tables.items()} == counts
    there = make("there", migrated=False)
    bring_back(there, target)
    assert {row["id"] for row in there.rows()["jobs"]} == {row["id"] for row in rows["jobs"]}
    assert jobs.get(there.db, contents.waiting).status == "queued"
    assert set(come) <= {row["id"] for row in here.rows()["jobs"]}


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_nothing_is_taken_away_meanwhile(make: Make, tmp_path: Path, database: str) -> None:
    """Somebody frees an entry's files while they are copied: they stay until the backup has ended."""
    here, target = make("here", database), tmp_path / "backup"
    contents = furnish(here, tmp_path)
    entry = contents.entries[0]
    evidence = str((jobs.get(here.db, entry).result or {})["evidence_sha256"])
    impatient = here.settings.model_copy(update={"keep_garbage_seconds": 1e-6})
    seen_by_then: list[bool] = []

    def meanwhile(what: str, done: int, total: int) -> None:
        if what == "files" and done == 1:
            release_files(here.db, here.store, entry, Caller("root", "admin"))
            assert evidence not in [gone.name for gone in collect(here.db, here.store, impatient)]
            seen_by_then.append(here.store.has(evidence))
            with pytest.raises(ValueError, match="another backup of this installation is under way"):
                back_up(here, tmp_path / "other")

    manifest = back_up(here, target, report=meanwhile)
    assert (seen_by_then, manifest.missing) == ([True], ())
    assert evidence in [gone.name for gone in collect(here.db, here.store, impatient)]
    there = make("there", migrated=False)
    bring_back(there, target)
    assert there.store.has(evidence)


# --- again into the same folder ---------------------------------------------------------------------------


def test_a_second_backup_copies_what_is_new_and_drops_what_is_gone(make: Make, tmp_path: Path) -> None:
    here, target = make("here"), tmp_path / "backup"
    contents = furnish(here, tmp_path)
    first = back_up(here, target)
    kept = {path: path.stat().st_ino for path in (target / "files").rglob("*") if path.is_file()}
    new = judged(
        here.db, here.store, tmp_path, Shown(robust=8), overrides={"model.job": contents.ended[0], "seed": 8}
    )
    second = back_up(here, target)
    after = {path: path.stat().st_ino for path in (target / "files").rglob("*") if path.is_file()}
    added = {path.name for path in after.keys() - kept.keys()}
    assert added == {str((new.result or {})["evidence_sha256"])}
    assert {path: after[path] for path in kept} == kept  # not written again
    assert second.files.rows == first.files.rows + 1
    assert [path.name for path in target.iterdir() if path.name.startswith("ledger")] == [second.ledger]
    with writing(here.db) as session:
        session.execute(text("DELETE FROM artifact_uses WHERE job_id = :job"), {"job": new.id})
        session.execute(text("DELETE FROM artifacts WHERE sha256 = :name"), {"name": added.copy().pop()})
    third = back_up(here, target)
    assert third.files.rows == first.files.rows
    assert check(target)[1] == []
    assert not [path for path in (target / "files").rglob("*") if path.name in added]


def test_a_file_that_the_store_lost_is_said_and_kept_from_the_earlier_backup(make: Make, tmp_path: Path) -> None:
    here, target = make("here"), tmp_path / "backup"
    contents = furnish(here, tmp_path)
    checkpoint = str((jobs.get(here.db, contents.ended[0]).result or {})["checkpoint_sha256"])
    back_up(here, target)
    here.store.delete(checkpoint)
    assert back_up(here, target).missing == ()
    assert back_up(here, tmp_path / "other").missing == (checkpoint,)
    assert check(tmp_path / "other")[1] == []
    evidence = str((jobs.get(here.db, contents.entries[0]).result or {})["evidence_sha256"])
    path = here.store.fetch(evidence)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert sorted(back_up(here, tmp_path / "third").missing) == sorted([checkpoint, evidence])


def test_a_backup_is_not_replaced_by_one_of_another_installation(make: Make, tmp_path: Path) -> None:
    here, other, empty, target = make("here"), make("other"), make("empty"), tmp_path / "backup"
    furnish(here, tmp_path)
    manifest = back_up(here, target)
    furnish(other, tmp_path)
    with pytest.raises(BackupError, match="is of another installation; check DKLBENCH_DATA_DIR"):
        back_up(other, target)
    with pytest.raises(BackupError, match="is not empty, and this installation is; check"):
        back_up(empty, target)
    assert check(target) == (manifest, [])
    there = make("there", migrated=False)
    bring_back(there, target)
    back_up(there, target)  # the same one, elsewhere


def test_a_folder_with_other_things_in_it_is_left_alone(make: Make, tmp_path: Path) -> None:
    here, target = make("here"), tmp_path / "pictures"
    target.mkdir()
    (target / "cat.png").write_bytes(b"cat")
    with pytest.raises(BackupError, match=r"has other things in it \(cat.png\); name an empty folder"):
        back_up(here, target)
    with pytest.raises(BackupError, match="is a file; name a folder"):
        back_up(here, target / "cat.png")
    assert [path.name for path in target.iterdir()] == ["cat.png"]
