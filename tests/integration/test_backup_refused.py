"""Backups that are damaged, cut off, of somebody else or hostile, and processes that are killed: refused with a
sentence, nothing is written elsewhere, and the installation is as empty as before."""

import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from installation import Contents, Installation, furnish, with_secret
from processes import BIN
from sqlalchemy import text

from service import jobs
from service.app import create_app
from service.backup import backup
from service.backup_check import check
from service.backup_parts import BackupError, Manifest
from service.callers import COMMAND_LINE
from service.cli import main
from service.db import connect, migrate, newest_schema
from service.keys import recognised
from service.restore import restore
from service.settings import Settings


@pytest.fixture
def here(settings: Settings, tmp_path: Path) -> Iterator[Installation]:
    installation = Installation.at(with_secret(settings.model_copy(update={"data_dir": tmp_path / "here"})))
    yield installation
    installation.db.dispose()


@pytest.fixture
def contents(here: Installation, tmp_path: Path) -> Contents:
    return furnish(here, tmp_path)


@pytest.fixture
def target(here: Installation, contents: Contents, tmp_path: Path) -> Path:
    backup(here.db, here.store, here.settings, tmp_path / "backup", caller=COMMAND_LINE)
    return tmp_path / "backup"


@pytest.fixture
def there(settings: Settings, tmp_path: Path) -> Iterator[Installation]:
    """An empty one."""
    installation = Installation.at(
        with_secret(settings.model_copy(update={"data_dir": tmp_path / "there"})), migrated=False
    )
    yield installation
    installation.db.dispose()


def bring_back(there: Installation, target: Path) -> Manifest:
    return restore(there.db, there.store, there.settings, target, caller=COMMAND_LINE)


def is_empty(there: Installation) -> bool:
    return not any(rows for name, rows in there.rows().items() if name != "alembic_version")


def forge(target: Path, **changes: Any) -> None:
    """A manifest that says something else, and is whole."""
    document = json.loads((target / "backup.json").read_text())
    document.pop("sha256")
    Manifest.model_validate_json(json.dumps({**document, **changes})).write(target)


def rewrite(target: Path, table: str, change: Callable[[list[dict[str, Any]]], list[Any]]) -> None:
    """Another table, and a manifest that agrees with it."""
    manifest = Manifest.read(target)
    path = target / manifest.ledger / f"{table}.jsonl.gz"
    with gzip.open(path, "rt") as file:
        rows = change([json.loads(line) for line in file])
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    part = {
        "rows": len(rows),
        "size": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    if table == "files":
        forge(target, files=part)
    else:
        tables = {name: each.model_dump() for name, each in manifest.tables.items()}
        forge(target, tables={**tables, table: part})


def a_stored_file(target: Path) -> Path:
    return max(
        (path for path in (target / "files").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def the_table(target: Path, name: str = "jobs") -> Path:
    return target / Manifest.read(target).ledger / f"{name}.jsonl.gz"


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no manifest": (lambda target: (target / "backup.json").unlink(), "there is no backup in"),
    "a manifest cut off": (
        lambda target: os.truncate(target / "backup.json", 700),
        "is damaged, or not of a backup",
    ),
    "a flipped bit": (lambda target: flip(target / "backup.json"), "is damaged, or not of a backup"),
    "another format": (lambda target: (target / "backup.json").write_text('{"format": 2}'), "a newer dkl-bench"),
    "something else": (
        lambda target: (target / "backup.json").write_text("[1]"),
        "or not of a backup of dkl-bench",
    ),
    "a table cut off": (lambda target: os.truncate(the_table(target), 100), "it is not what the manifest says"),
    "a table changed": (lambda target: flip(the_table(target)), "it is not what the manifest says"),
    "a table gone": (lambda target: the_table(target).unlink(), r"jobs.jsonl.gz is missing"),
    "the ledger gone": (lambda target: shutil.rmtree(the_table(target).parent), "is missing; use another backup"),
    "a file changed": (lambda target: flip(a_stored_file(target)), "is damaged"),
    "a file cut off": (lambda target: os.truncate(a_stored_file(target), 100), "is damaged"),
    "a file gone": (lambda target: a_stored_file(target).unlink(), "is missing"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_backup_is_refused(
    target: Path,
    there: Installation,
    damage: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    break_it, sentence = DAMAGE[damage]
    break_it(target)
    with pytest.raises(BackupError, match=sentence):
        bring_back(there, target)
    assert is_empty(there)
    monkeypatch.setattr(sys, "argv", ["dklbench", "backup", "--check", str(target)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "error: " in capsys.readouterr().err


def test_a_newer_backup_is_refused(target: Path, there: Installation) -> None:
    forge(target, revision="9999", version="7.0")
    with pytest.raises(
        BackupError, match=rf"of dkl-bench 7.0 with schema 9999, which .*, schema {newest_schema()}"
    ):
        bring_back(there, target)
    assert is_empty(there)


# --- hostile ones -----------------------------------------------------------------------------------------


def test_paths_that_lead_elsewhere_are_not_followed(target: Path, there: Installation, tmp_path: Path) -> None:
    for change in ({"ledger": "../here"}, {"ledger": "/etc"}, {"tables": {"../../x": {}}}):
        document = json.loads((target / "backup.json").read_text())
        digest = document.pop("sha256")
        (tmp_path / "forged").mkdir(exist_ok=True)
        (tmp_path / "forged" / "backup.json").write_text(json.dumps({**document, **change, "sha256": digest}))
        with pytest.raises(BackupError, match="is damaged, or not of a backup"):
            bring_back(there, tmp_path / "forged")
    evil = "../../../../../evil"
    rewrite(target, "files", lambda rows: [{**rows[0], "sha256": evil}, *rows[1:]])
    with pytest.raises(ValueError, match="named by 64 hexadecimal digits"):
        bring_back(there, target)
    assert is_empty(there)
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("jobs", "id", "../../../x"),
        ("uploads", "id", "../../../../etc/cron.d/x"),
        ("artifact_uses", "sha256", "../" * 20 + "x"),
        ("chunks", "found_sha256", 7),
    ],
)
def test_names_that_would_become_paths_are_refused(
    target: Path, there: Installation, table: str, column: str, value: Any
) -> None:
    rewrite(target, table, lambda rows: [{**rows[0], column: value}, *rows[1:]])
    with pytest.raises(BackupError, match=f"{table}.jsonl.gz has a {column} that is none"):
        bring_back(there, target)
    assert is_empty(there)


@pytest.mark.parametrize("what", ["table", "file", "folder"])
def test_links_in_a_backup_are_not_followed(target: Path, there: Installation, tmp_path: Path, what: str) -> None:
    path = the_table(target) if what == "table" else a_stored_file(target)
    path = path.parent if what == "folder" else path
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    with pytest.raises((BackupError, OSError), match=r"missing|leads out of the store"):
        bring_back(there, target)
    assert is_empty(there)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda rows: [{"id": "0" * 12}], "does not have the columns of schema"),
        (lambda rows: [7], "was not written by dkl-bench"),
        (lambda rows: [*rows, rows[0]], "does not take the backup's jobs"),
        (lambda rows: [{**row, "status": "asleep"} for row in rows], "does not take the backup's jobs"),
        (lambda rows: rows[:1], "refers to nothing|does not take"),
    ],
)
def test_tables_that_are_no_ledger_are_refused(
    target: Path, there: Installation, change: Callable[[list[dict[str, Any]]], list[Any]], sentence: str
) -> None:
    rewrite(target, "jobs", change)
    with pytest.raises((BackupError, RuntimeError), match=sentence):
        bring_back(there, target)
    assert is_empty(there)


# --- what it may be restored into -------------------------------------------------------------------------


def test_only_an_empty_installation_is_filled(target: Path, here: Installation, there: Installation) -> None:
    with pytest.raises(BackupError, match=r"is not empty: it has .* jobs.*restore into a new data folder"):
        bring_back(here, target)
    migrate(there.db)
    bring_back(there, target)  # tables without rows are empty
    with pytest.raises(BackupError, match="is not empty"):
        bring_back(there, target)


def test_an_installation_that_is_served_is_not_filled(target: Path, there: Installation) -> None:
    from filelock import FileLock

    there.settings.data_dir.mkdir(parents=True, exist_ok=True)
    with (
        FileLock(there.settings.data_dir / "service.lock"),
        pytest.raises(BackupError, match="stop it, then restore"),
    ):
        bring_back(there, target)
    assert is_empty(there)


# --- the secret -------------------------------------------------------------------------------------------


def test_keys_work_with_the_secret_and_not_without(settings: Settings, tmp_path: Path) -> None:
    here = Installation.at(settings.model_copy(update={"data_dir": tmp_path / "here"}))
    key = furnish(here, tmp_path).key
    backup(here.db, here.store, here.settings, tmp_path / "with", caller=COMMAND_LINE, with_secret=True)
    backup(here.db, here.store, here.settings, tmp_path / "without", caller=COMMAND_LINE)
    assert not list((tmp_path / "without").rglob("secret"))
    (kept,) = (tmp_path / "with").rglob("secret")
    assert kept.stat().st_mode & 0o777 == 0o600
    for name in ("with", "without"):
        there = Installation.at(
            settings.model_copy(update={"data_dir": tmp_path / f"there {name}"}), migrated=False
        )
        bring_back(there, tmp_path / name)
        if name == "with":
            assert recognised(there.db, there.settings, key).name == "anna"
            assert (there.settings.data_dir / "secret").stat().st_mode & 0o777 == 0o600
        else:
            with pytest.raises(Exception, match="is not one of this service's"):
                recognised(there.db, there.settings, key)
        there.db.dispose()
    other = Installation.at(settings.model_copy(update={"data_dir": tmp_path / "other"}), migrated=False)
    (tmp_path / "other").mkdir(exist_ok=True)
    (tmp_path / "other" / "secret").write_text("x" * 64)
    with pytest.raises(BackupError, match="holds another secret than the backup"):
        bring_back(other, tmp_path / "with")
    assert is_empty(other)
    assert (tmp_path / "other" / "secret").read_text() == "x" * 64
    with pytest.raises(BackupError, match="is in DKLBENCH_SECRET_KEY and not in the data folder"):
        backup(
            here.db, here.store, with_secret(here.settings), tmp_path / "x", caller=COMMAND_LINE, with_secret=True
        )
    assert not (tmp_path / "x").exists()
    for installation in (here, other):
        installation.db.dispose()


# --- kill -9 ----------------------------------------------------------------------------------------------


def dklbench(settings: Settings, *words: str, when: Callable[[], bool]) -> int:
    """The command, killed when it holds; its exit code."""
    process = subprocess.Popen(
        [str(BIN / "dklbench"), *words],
        env={**os.environ, **settings.as_environment()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    with process:
        while process.poll() is None and not when():
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    return process.returncode


def enlarge(here: Installation, tmp_path: Path) -> None:
    """Enough events and files that neither command is done in no time."""
    job_id = jobs.recent(here.db)[0].id
    with here.db.begin() as connection:
        connection.execute(
            text("INSERT INTO job_events (job_id, attempt, kind, payload, at) VALUES (:job, 0, 'batch', :doc, 0)"),
            [{"job": job_id, "doc": json.dumps({"number": number, "of": "x" * 200})} for number in range(20_000)],
        )
        for number in range(60):
            path = tmp_path / "large"
            path.write_bytes(os.urandom(200_000))
            row = {"sha256": here.store.put(path), "number": number}
            connection.execute(
                text("INSERT INTO artifacts (sha256, size, created_at) VALUES (:sha256, 200000, :number)"), row
            )


@pytest.mark.long
def test_a_backup_that_is_killed_leaves_the_earlier_one(
    here: Installation, contents: Contents, tmp_path: Path
) -> None:
    target = tmp_path / "backup"
    first = backup(here.db, here.store, here.settings, target, caller=COMMAND_LINE)
    enlarge(here, tmp_path)
    files = len(list((target / "files").rglob("*/*")))
    moments: list[Callable[[], bool]] = [
        lambda: bool(list(target.glob(".ledger-*.tmp/job_events*"))),
        lambda: len(list((target / "files").glob("*/*"))) > files + 10,
    ]
    for moment in moments:
        assert dklbench(here.settings, "backup", str(target), when=moment) == -signal.SIGKILL
        assert check(target) == (first, [])
    last = backup(here.db, here.store, here.settings, target, caller=COMMAND_LINE)
    assert check(target) == (last, [])
    assert last.files.rows >= first.files.rows + 60
    left = {path.name for path in target.iterdir()}
    assert left == {"backup.json", "files", ".lock", last.ledger}
    assert not list((target / "files").glob(".*.tmp"))


@pytest.mark.long
def test_a_restore_that_is_killed_can_be_repeated(
    here: Installation, contents: Contents, there: Installation, tmp_path: Path
) -> None:
    target = tmp_path / "backup"
    enlarge(here, tmp_path)
    manifest = backup(here.db, here.store, here.settings, target, caller=COMMAND_LINE)
    artifacts, wal = there.settings.artifacts_dir, Path(f"{there.settings.data_dir / 'ledger.sqlite'}-wal")
    moments: list[Callable[[], bool]] = [
        lambda: len(list(artifacts.glob("*/*"))) > 10,
        lambda: wal.exists() and wal.stat().st_size > 500_000,
    ]
    for moment in moments:
        assert dklbench(there.settings, "restore", str(target), when=moment) == -signal.SIGKILL
        assert is_empty(there)
    assert bring_back(there, target) == manifest
    assert len(there.rows()["job_events"]) > 20_000
    app = create_app(there.settings)
    app.state.dkl.db.dispose()
    assert connect(there.settings.database).connect().execute(text("PRAGMA integrity_check")).scalar() == "ok"
