"""Databases of every earlier revision, with what services of that time left in them, are upgraded: nothing is
lost, the pages show it, and the ledger goes on with it. tests/data/old has the rows."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from sqlalchemy import Engine, text
from starlette.testclient import TestClient

from dkl.explain import read_recipe
from service import claims, healing, jobs
from service.app import create_app
from service.backup import backup
from service.backup_check import check
from service.callers import COMMAND_LINE
from service.db import connect, known_schemas, migrate, migrating, migrations_for, newest_schema
from service.restore import restore
from service.settings import Settings
from service.state import State

OLD = Path(__file__).parent.parent / "data" / "old"
REVISIONS = sorted(path.stem for path in OLD.glob("*.json"))
Tables = dict[str, list[dict[str, Any]]]
ORDER = ("api_keys", "jobs")
"""What others refer to comes first."""


def test_every_revision_but_the_newest_has_old_rows() -> None:
    assert set(known_schemas()) - {newest_schema()} <= set(REVISIONS), f"put rows of it into {OLD}"


@pytest.fixture(params=REVISIONS)
def rows(request: pytest.FixtureRequest) -> Tables:
    found: Tables = json.loads((OLD / f"{request.param}.json").read_text())
    return {"revision": [{"is": request.param}], **found}


@pytest.fixture
def old(rows: Tables, database_url: str) -> Iterator[Engine]:
    """A database of then."""
    engine = connect(database_url)
    with migrating(engine) as connection:
        command.upgrade(migrations_for(connection), rows["revision"][0]["is"])
    with engine.begin() as connection:
        for name in (*ORDER, *(rows.keys() - {*ORDER, "revision"})):
            for row in sorted(
                rows.get(name, []), key=lambda row: bool(row.get("parent_id") or row.get("rerun_of"))
            ):
                places = ", ".join(f":{column}" for column in row)
                connection.execute(text(f"INSERT INTO {name} ({', '.join(row)}) VALUES ({places})"), row)
        if engine.dialect.name == "postgresql":
            for name in ("job_events", "audit_events", "verifications"):
                if rows.get(name):
                    sequence = f"pg_get_serial_sequence('{name}', 'id')"
                    connection.execute(text(f"SELECT setval({sequence}, (SELECT max(id) FROM {name}))"))
    yield engine
    engine.dispose()


@pytest.fixture
def upgraded(old: Engine) -> Engine:
    migrate(old)
    return old


@pytest.fixture
def client(upgraded: Engine, database_url: str, settings: Settings) -> Iterator[TestClient]:
    app = create_app(settings.model_copy(update={"database_url": database_url}))
    yield TestClient(app)
    state: State = app.state.dkl
    state.db.dispose()


def stored(engine: Engine, query: str) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        return sorted(tuple(row) for row in connection.execute(text(query)))


def test_nothing_is_lost(rows: Tables, upgraded: Engine) -> None:
    columns = (
        "id",
        "kind",
        "name",
        "parent_id",
        "status",
        "reason",
        "attempt",
        "losses",
        "created_at",
        "finished_at",
    )
    expected = {row["id"]: tuple(row[column] for column in columns) for row in rows["jobs"]}
    with upgraded.connect() as connection:
        found = connection.execute(text(f"SELECT {', '.join(columns)} FROM jobs"))
        assert {row.id: tuple(row) for row in found} == expected
    for row in rows["jobs"]:
        job = jobs.get(upgraded, row["id"])
        assert job.result == (json.loads(row["result"]) if row["result"] else None)
        events = [event for event in rows["job_events"] if event["job_id"] == job.id]
        assert [(event.id, event.key, event.payload) for event in jobs.events(upgraded, job.id)] == [
            (event["id"], event["key"], json.loads(event["payload"])) for event in events
        ]
    for name in rows.keys() - {"jobs", "revision"}:
        if name not in {"artifact_uses", "seats"} or rows["revision"][0]["is"] >= "0003":
            assert stored(upgraded, f"SELECT count(*) FROM {name}") == [(len(rows[name]),)]
    held = {row["id"] for row in rows["jobs"] if row["status"] in {"running", "cancelling"}}
    assert {job_id for (job_id,) in stored(upgraded, "SELECT job_id FROM seats")} == held
    left = {
        (document[f"{role}_sha256"], row["id"], role)
        for row in rows["jobs"]
        if row["result"] and (document := json.loads(row["result"]))
        for role in ("checkpoint", "evidence")
        if document.get(f"{role}_sha256")
    }
    assert left <= set(stored(upgraded, "SELECT sha256, job_id, role FROM artifact_uses"))


def test_the_pages_show_it(rows: Tables, client: TestClient) -> None:
    def page(path: str) -> str:
        answer = client.get(path, headers={"Accept": "text/html"})
        assert answer.status_code == 200, (path, answer.text)
        return answer.text

    listed, board = page("/jobs"), page("/?dataset=digits")
    for row in rows["jobs"]:
        assert row["id"] in listed
        assert row["status"] in page(f"/jobs/{row['id']}")
        document = client.get(f"/api/v1/jobs/{row['id']}").json()
        assert (document["status"], document["result"]) == (
            row["status"],
            json.loads(row["result"]) if row["result"] else None,
        )
        if row["kind"] == "evaluate" and row["status"] == "succeeded":
            assert f"/entries/{row['id']}" in board
            assert f"{row['robust_accuracy'] * 100:.2f}" in page(f"/entries/{row['id']}")
    found = client.get("/api/v1/leaderboard?dataset=digits").json()
    assert {row["id"] for row in rows["jobs"] if row["robust_accuracy"] is not None} <= {
        row["entry"] for row in found["rows"]
    }


def test_the_ledger_goes_on_with_it(rows: Tables, upgraded: Engine) -> None:
    def of(*statuses: str) -> list[str]:
        return [row["id"] for row in rows["jobs"] if row["status"] in statuses]

    assert sorted(healing.requeue_lost(upgraded, max_losses=3)) == sorted(of("running", "cancelling"))
    assert {jobs.get(upgraded, job_id).status for job_id in of("running")} == {"queued"}
    assert {jobs.get(upgraded, job_id).status for job_id in of("cancelling")} == {"canceled"}
    for row in rows["jobs"]:
        before = jobs.get(upgraded, row["id"])
        if row["status"] == "succeeded":
            again = jobs.rerun(upgraded, row["id"], caller=COMMAND_LINE)
            assert (again.rerun_of, read_recipe(again.recipe)) == (row["id"], read_recipe(before.recipe))
        elif row["status"] in {"failed", "canceled"} and row["parent_id"] is None:
            assert jobs.resume(upgraded, row["id"], caller=COMMAND_LINE).status == "queued"
        elif row["status"] == "running":
            claim = claims.claim(upgraded, row["id"], worker="new", lease_seconds=60)
            assert claim is not None
            assert claim.attempt == row["attempt"] + 1
            claims.stopped(upgraded, claim)
        elif before.status == "queued":
            assert jobs.cancel(upgraded, row["id"], caller=COMMAND_LINE).status in {"canceled", "failed"}


def test_it_is_backed_up_as_it_is_and_restored_as_it_is_now(
    rows: Tables, old: Engine, database_url: str, settings: Settings, tmp_path: Path
) -> None:
    """A backup made before the upgrade comes back after it, from PostgreSQL into SQLite, too."""
    revision = rows["revision"][0]["is"]
    here = settings.model_copy(update={"database_url": database_url})
    state = State(here, old)
    if revision < "0003":
        with pytest.raises(ValueError, match=f"the ledger has schema {revision}, of a release that cannot be"):
            backup(old, state.artifacts, here, tmp_path / "backup", caller=COMMAND_LINE)
        return
    manifest = backup(old, state.artifacts, here, tmp_path / "backup", caller=COMMAND_LINE)
    assert (manifest.revision, check(tmp_path / "backup")) == (revision, (manifest, []))
    there = settings.model_copy(update={"data_dir": tmp_path / "there", "database_url": ""})
    new = connect(there.database)
    restore(new, State(there, new).artifacts, there, tmp_path / "backup", caller=COMMAND_LINE)
    assert stored(new, "SELECT id FROM jobs") == sorted((row["id"],) for row in rows["jobs"])
    assert stored(new, "SELECT version_num FROM alembic_version") == [(newest_schema(),)]
    new.dispose()
