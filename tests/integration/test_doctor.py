"""`dklbench doctor` finds what is wrong with an installation, and says what to do."""

import json
import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pytest
import typer
from processes import free_port
from pydantic import SecretStr
from sqlalchemy import Engine, update

from service import commands_operations, doctor, doctor_ledger, keys
from service.callers import COMMAND_LINE
from service.db import clock, connect, migrate, writing
from service.findings import Finding
from service.roster import roster
from service.settings import Settings
from service.tables import Delivery, Job, Seat, Worker


def levels(findings: Iterator[Finding]) -> dict[str, str]:
    """The findings that are not just fine, as level: sentence; every one that is bad has a way out."""
    found = list(findings)
    assert found
    assert all(finding.fix for finding in found if finding.level in {"warning", "error"})
    return {finding.level: finding.says for finding in found if finding.level != "ok"}


# --- this machine -----------------------------------------------------------------------------------------


def test_a_disk_that_runs_full(settings: Settings) -> None:
    assert levels(doctor.disk(settings.model_copy(update={"min_free_bytes": 1}))) == {}
    assert "less than the" in levels(doctor.disk(settings.model_copy(update={"min_free_bytes": 2**60})))["error"]
    (free,) = doctor.disk(settings)
    assert "free under" in free.says


def test_a_store_that_takes_nothing(settings: Settings) -> None:
    assert levels(doctor.store(settings)) == {}
    settings.artifacts_dir.rmdir()
    settings.artifacts_dir.write_text("")
    assert levels(doctor.store(settings)) == {"error": "nothing can be stored"}


def test_a_secret_that_others_may_read_or_that_is_short(settings: Settings) -> None:
    assert "the first start makes one" in levels(doctor.secret(settings))["info"]
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    kept = settings.data_dir / "secret"
    kept.write_text("x" * 64)
    kept.chmod(0o640)
    assert levels(doctor.secret(settings)) == {"error": f"other users of this machine may read {kept}"}
    kept.chmod(0o600)
    assert levels(doctor.secret(settings)) == {}
    short = settings.model_copy(update={"secret_key": SecretStr("hunter2")})
    assert "has 7 characters" in levels(doctor.secret(short))["error"]


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({"anonymous": "submit", "allowed_hosts": ()}, None),
        ({"anonymous": "submit", "host": "0.0.0.0"}, "error"),
        ({"anonymous": "submit", "allowed_hosts": ("bench.example.org",)}, "error"),
        ({"anonymous": "read", "host": "0.0.0.0"}, "warning"),
        ({"anonymous": "", "host": "0.0.0.0"}, None),
        ({"anonymous": "nothing", "host": "::"}, None),
    ],
)
def test_doors_that_are_too_open(settings: Settings, changes: dict[str, Any], level: str | None) -> None:
    assert list(levels(doctor.access(settings.model_copy(update=changes)))) == ([level] if level else [])


def test_data_sets_that_are_not_here_yet(settings: Settings) -> None:
    assert "cifar10, cifar100 not in" in levels(doctor.datasets(settings))["info"]
    settings.datasets_dir.mkdir(parents=True)
    (settings.datasets_dir / "cifar10_train.npz").touch()
    (settings.datasets_dir / "cifar-100-python").mkdir()
    assert levels(doctor.datasets(settings)) == {}


# --- what it depends on -----------------------------------------------------------------------------------


def test_a_broker_that_is_away(settings: Settings) -> None:
    away = settings.model_copy(update={"broker_url": f"redis://:hunter2secret@127.0.0.1:{free_port()}/0"})
    (finding,) = doctor.broker(away)
    assert finding.bad
    assert "hunter2secret" not in str(finding)
    assert levels(doctor.broker(settings)) == {}


def test_sqlite_for_many_machines_or_on_a_network_disk(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(doctor.sqlite_place(settings)) == []
    assert (
        "PostgreSQL"
        in levels(doctor.sqlite_place(settings.model_copy(update={"broker_url": "redis://x"})))["warning"]
    )
    monkeypatch.setattr(doctor, "_NETWORK_DISKS", (doctor._file_system(settings.data_dir / "ledger.sqlite"),))
    assert "SQLite on a network disk" in levels(doctor.sqlite_place(settings))["error"]


def test_a_database_that_is_away_ends_the_examination(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "torch", doctor.python)  # takes seconds
    gone = settings.model_copy(update={"database_url": f"postgresql://u:hunter2secret@127.0.0.1:{free_port()}/x"})
    *_, last = doctor.examine(gone, connect(gone.database))
    assert (last.check, last.bad) == ("database", True)
    assert "hunter2secret" not in str(last)


def test_a_database_without_tables_ends_the_examination(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "torch", doctor.python)
    *_, last = doctor.examine(settings, connect(settings.database))
    assert (last.check, last.fix) == ("migrations", "dklbench migrate")


def test_a_service_for_others_without_keys(db: Engine, settings: Settings) -> None:
    outside = settings.model_copy(update={"host": "0.0.0.0"})
    assert "nobody has an API key" in levels(doctor.administrators(outside, db))["warning"]
    keys.create(db, outside, keys.KeyRequest(name="anna", scope="admin"), caller=COMMAND_LINE)
    assert list(doctor.administrators(outside, db)) == []


# --- the ledger -------------------------------------------------------------------------------------------


def add_worker(db: Engine, name: str, silent_for: float = 0, **fields: Any) -> None:
    described = {
        "host": "h", "pid": 1, "device": "NVIDIA H200", "gpus": 1, "gpu_memory": 140.0, "processes": 1,
        "versions": {"dkl-bench": version("dkl-bench")}, "queues": ["gpu"], "draining": False,
    }  # fmt: skip
    with writing(db) as session:
        at = clock(session) - silent_for
        session.add(Worker(name=name, started_at=at, beat_at=at, **{**described, **fields}))


def add_job(db: Engine, number: int, **fields: Any) -> Job:
    with writing(db) as session:
        job = Job(
            id=f"{number:012x}",
            kind="train",
            recipe={},
            fingerprint="0" * 64,
            dataset="digits",
            created_at=clock(session),
            **{"status": "queued", **fields},
        )
        session.add(job)
        return job


def test_clocks_that_disagree(db: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert levels(doctor_ledger.clocks(db)) == {}
    real = time.time
    monkeypatch.setattr(doctor_ledger.time, "time", lambda: real() - 60)
    assert levels(doctor_ledger.clocks(db)) == {"warning": "the database's clock is 60 s ahead of this machine's"}


def test_workers_that_are_missing_silent_or_of_another_version(db: Engine, settings: Settings) -> None:
    def found(settings: Settings = settings) -> dict[str, str]:
        return levels(doctor_ledger.workers(roster(db, lease_seconds=settings.lease_seconds), settings))

    assert "none is alive" in found()["warning"]
    add_worker(db, "new")
    assert found() == {}
    assert found(settings.model_copy(update={"queues": ("gpu", "long")})) == {
        "warning": "no living worker serves queue long"
    }
    add_worker(db, "old", versions={"dkl-bench": "0.0.1"})
    assert found() == {"error": f"old runs version 0.0.1, this is {version('dkl-bench')}"}
    add_worker(db, "dead", silent_for=500)
    assert found()["warning"].startswith("dead has been silent for 8 min")


def test_jobs_that_no_worker_can_take(db: Engine, settings: Settings) -> None:
    add_worker(db, "small", gpu_memory=24.0)
    crew = roster(db, lease_seconds=settings.lease_seconds)
    for number in range(7):
        add_job(db, number, gpu_memory=80.0)
    add_job(db, 7)
    says = levels(doctor_ledger.waiting(db, crew))["warning"]
    assert "80 GiB" in says
    assert says.endswith("000000000004 and 2 more")
    assert "000000000007" not in says


def test_claims_that_nobody_takes_back(db: Engine, settings: Settings) -> None:
    assert levels(doctor_ledger.silent_claims(db, settings)) == {}
    job = add_job(db, 1, status="running")
    with writing(db) as session:
        at = clock(session)
        session.add(Seat(job_id=job.id, attempt=1, worker="w", taken_at=at, lease_until=at, progress_at=at))
    assert levels(doctor_ledger.silent_claims(db, settings)) == {}  # the sweeper may be about to come
    with writing(db) as session:
        session.execute(update(Seat).values(lease_until=at - 60))
    assert "the workers of 000000000001 are silent" in levels(doctor_ledger.silent_claims(db, settings))["error"]


def test_webhooks_that_never_arrived(db: Engine) -> None:
    assert list(doctor_ledger.webhooks(db)) == []
    job = add_job(db, 1, status="failed")
    with writing(db) as session:
        session.add(
            Delivery(id="1", job_id=job.id, url="https://x.org", tries=8, error="x.org answered 500", created_at=0)
        )
    assert levels(doctor_ledger.webhooks(db)) == {"info": "1 never arrived; the last: x.org answered 500"}


# --- the command ------------------------------------------------------------------------------------------


def test_torch_is_looked_at_in_a_process_of_its_own(settings: Settings) -> None:
    (found,) = doctor.torch(settings)
    assert found.level in {"ok", "info"}
    assert found.says.startswith(version("torch").partition("+")[0])


def test_a_torch_that_cannot_be_imported(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_TORCH", "raise OSError('libcudart.so.13: cannot open shared object file')")
    assert "libcudart.so.13" in levels(doctor.torch(settings))["error"]


@pytest.fixture
def asked(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings that the command finds."""
    alone = settings.model_copy(update={"allowed_hosts": ()})
    monkeypatch.setattr(doctor, "torch", doctor.python)
    monkeypatch.setattr("service.settings.settings", lambda: alone)
    return alone


def test_the_command_ends_with_1_where_something_is_wrong(
    asked: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as ended:
        commands_operations.doctor(as_json=True)
    assert ended.value.exit_code == 1
    document = json.loads(capsys.readouterr().out)
    assert not document["ok"]
    (wrong,) = [finding for finding in document["findings"] if finding["level"] == "error"]
    assert (wrong["check"], wrong["fix"]) == ("migrations", "dklbench migrate")


def test_the_command_says_what_to_do(asked: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    db = connect(asked.database)
    migrate(db)
    db.dispose()
    with pytest.raises(typer.Exit) as ended:
        commands_operations.doctor()
    assert ended.value.exit_code == 0
    said = capsys.readouterr().out
    assert "warning worker" in said
    assert "-> dklbench up" in said
