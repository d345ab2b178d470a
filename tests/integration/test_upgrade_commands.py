"""Programs and databases of different versions, as somebody meets them who upgrades: which commands refuse, which
bring the database up to date, and what doctor says of backups."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from commands import Answer, Command
from installation import Installation, furnish
from processes import BIN, Start
from sqlalchemy import Engine, text, update

from service import doctor_ledger
from service.backup import backup
from service.callers import COMMAND_LINE
from service.db import connect, known_schemas, migrate, migrating, migrations_for, newest_schema, writing
from service.settings import Settings
from service.settings import settings as chosen
from service.tables import Job


def started(settings: Settings, *command: str) -> tuple[int, str]:
    """Exit code, and everything that it prints."""
    done = subprocess.run(
        command,
        env={**os.environ, **settings.as_environment()},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.fixture
def on_disk(settings: Settings, here: None, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings that a process can have, with a server's own database; this process's commands have them too."""
    settings.data_dir.mkdir(parents=True)
    url = f"sqlite:///{settings.data_dir / 'served.sqlite'}"
    monkeypatch.setenv("DKLBENCH_DATABASE_URL", url)
    chosen.cache_clear()
    return settings.model_copy(update={"database_url": url})


def said_by(answer: Answer) -> str:
    return " ".join((answer.stdout + answer.stderr).split())


def leave_at(settings: Settings, revision: str) -> None:
    engine = connect(settings.database)
    with migrating(engine) as connection:
        command.upgrade(migrations_for(connection), revision)
    engine.dispose()


def of_the_future(settings: Settings) -> None:
    engine = connect(settings.database)
    migrate(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()


def test_serve_refuses_a_database_that_is_not_migrated(on_disk: Settings, dklbench: Command) -> None:
    older = known_schemas()[-2]
    leave_at(on_disk, older)
    refused = dklbench("serve", "--port", "0")
    assert refused.returncode == 1
    assert f"the schema is {older}, this version needs {newest_schema()}: run dklbench migrate" in said_by(refused)
    assert dklbench("migrate").returncode == 0
    engine = connect(on_disk.database)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == newest_schema()
    engine.dispose()


@pytest.mark.parametrize("words", [("serve", "--port", "0"), ("migrate",), ("up", "--port", "0"), ("backup", "b")])
def test_an_old_program_refuses_a_newer_database(
    on_disk: Settings, dklbench: Command, tmp_path: Path, words: tuple[str, ...]
) -> None:
    of_the_future(on_disk)
    refused = dklbench(*words)
    said = said_by(refused)
    assert refused.returncode == 1
    assert "error: the " in said
    assert "has schema 9999" in said
    assert "newer dkl-bench" in said
    assert "Traceback" not in said
    assert not (tmp_path / "b" / "backup.json").exists()


@pytest.mark.long
@pytest.mark.parametrize(
    "worker",
    [
        (sys.executable, "-m", "workers"),
        (str(BIN / "celery"), "-A", "workers.app", "worker"),
    ],
    ids=["embedded", "celery"],
)
def test_a_worker_of_another_version_takes_no_job(on_disk: Settings, worker: tuple[str, ...]) -> None:
    """It has not got so far as to need its broker, for which this address has nobody."""
    older = known_schemas()[-2]
    leave_at(on_disk, older)
    code, said = started(on_disk.model_copy(update={"broker_url": "redis://127.0.0.1:1/0"}), *worker)
    assert code == 1
    assert f"the schema is {older}, this version needs {newest_schema()}: run dklbench migrate" in said
    assert "Traceback" not in said
    of_the_future(on_disk)
    code, said = started(on_disk, *worker)
    assert code == 1
    assert "newer dkl-bench" in said


@pytest.mark.long
def test_up_after_an_upgrade_just_works(settings: Settings, start_embedded: Start) -> None:
    leave_at(settings, "0003")
    rows = json.loads((Path(__file__).parent.parent / "data" / "old" / "0003.json").read_text())
    engine = connect(settings.database)
    done = [row for row in rows["jobs"] if row["status"] == "succeeded" and row["parent_id"] is None]
    with engine.begin() as connection:
        for row in done:
            places = ", ".join(f":{column}" for column in row)
            connection.execute(text(f"INSERT INTO jobs ({', '.join(row)}) VALUES ({places})"), row)
    engine.dispose()
    _, client = start_embedded()
    for row in done:
        assert client.job(row["id"]).document["result"] == json.loads(row["result"])


# --- doctor -----------------------------------------------------------------------------------------------


def test_doctor_says_when_the_last_backup_was_made(settings: Settings, tmp_path: Path) -> None:
    here = Installation.at(settings)
    assert _says(here.db) == ("info", "none was ever made")
    furnish(here, tmp_path)
    assert _says(here.db) == ("info", "none was ever made")  # the results are of today
    _age(here.db, 8 * 86400)
    level, says = _says(here.db)
    assert level == "warning"
    assert says.startswith("none was ever made, and results of the last 8 d")
    backup(here.db, here.store, here.settings, tmp_path / "backup", caller=COMMAND_LINE)
    level, says = _says(here.db)
    assert (level, says.startswith("the last one was made ")) == ("ok", True)
    here.db.dispose()


@pytest.mark.long
def test_doctor_tells_what_the_last_backup_does_not_have(settings: Settings, tmp_path: Path) -> None:
    here = Installation.at(settings)
    contents = furnish(here, tmp_path)
    with writing(here.db) as session:
        job = session.get_one(Job, contents.ended[0])
        here.store.delete((job.result or {})["checkpoint_sha256"])
    backup(here.db, here.store, here.settings, tmp_path / "backup", caller=COMMAND_LINE)
    level, says = _says(here.db)
    assert level == "warning"
    assert says.endswith("the store had lost 1 files by then")
    here.db.dispose()


def _says(db: Engine) -> tuple[str, str]:
    (finding,) = doctor_ledger.backups(db)
    assert (finding.level != "warning") or finding.fix
    return finding.level, finding.says


def _age(db: Engine, seconds: float) -> None:
    with writing(db) as session:
        session.execute(update(Job).values(finished_at=Job.finished_at - seconds))
