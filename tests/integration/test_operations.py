"""What whoever runs the service asks it: does it live, could it work, how is it doing, what has it said."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient
from processes import BIN, Processes, free_port, wait_until
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine, select

from service import health, keys
from service.app import create_app
from service.callers import COMMAND_LINE
from service.db import clock, connect, migrate, reading, writing
from service.settings import Settings
from service.tables import Artifact, Delivery, Job, Seat, Upload, Worker


@pytest.fixture
def local(settings: Settings) -> Settings:
    """With a migrated SQLite file."""
    db = connect(settings.database)
    migrate(db)
    db.dispose()
    return settings


@pytest.fixture
def client(db: Engine, database_url: str, settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings.model_copy(update={"database_url": database_url}))) as client:
        yield client


def make_key(db: Engine, settings: Settings, name: str, scope: keys.KeyScope) -> str:
    _, text = keys.create(db, settings, keys.KeyRequest(name=name, scope=scope), caller=COMMAND_LINE)
    return text


def ask(settings: Settings, path: str = "/readyz", **headers: str) -> httpx2.Response:
    """Without what runs beside the routes."""
    return TestClient(create_app(settings)).get(path, headers=headers)


# --- livez, readyz ----------------------------------------------------------------------------------------


def test_a_service_that_could_work_is_ready(client: TestClient) -> None:
    assert client.get("/livez").json() == {"status": "ok"}
    answer = client.get("/readyz")
    assert answer.status_code == 200, answer.text
    assert answer.json()["status"] == "ok"
    checks = answer.json()["checks"]
    assert list(checks) == ["database", "migrations", "broker", "storage", "workers"]
    assert checks["workers"] == {"ok": False, "says": "no worker is alive: jobs wait until one comes"}
    assert all(check["ok"] for name, check in checks.items() if name != "workers")


def test_readiness_counts_the_living_workers(client: TestClient, db: Engine) -> None:
    add_worker(db, "a")
    add_worker(db, "b", silent_for=60)
    assert client.get("/readyz").json()["checks"]["workers"] == {"ok": True, "says": "1 alive"}


def test_both_are_answered_without_a_key_under_any_name(local: Settings) -> None:
    closed = local.model_copy(update={"anonymous": "nothing", "allowed_hosts": ()})
    for path in ("/livez", "/readyz"):
        assert ask(closed, path, Host="10.0.0.7.nip.example").status_code == 200


def failing(settings: Settings, **changes: object) -> dict[str, Any]:
    """What /readyz says is wrong."""
    answer = ask(settings.model_copy(update=changes))
    assert answer.status_code == 503
    assert answer.json()["status"] == "unavailable"
    return {name: check["says"] for name, check in answer.json()["checks"].items() if not check["ok"]}


def test_a_database_that_is_away_makes_it_unready_but_alive(settings: Settings) -> None:
    gone = settings.model_copy(
        update={"database_url": f"postgresql://dkl:hunter2secret@127.0.0.1:{free_port()}/gone"}
    )
    assert ask(gone, "/livez").status_code == 200
    wrong = failing(gone)
    assert wrong["database"] == "the database does not answer"
    assert "hunter2secret" not in json.dumps(wrong)
    assert "127.0.0.1" not in json.dumps(wrong)


def test_a_database_that_was_not_migrated(settings: Settings) -> None:
    assert failing(settings)["migrations"] == "the schema is none, this version needs 0005: run dklbench migrate"


def test_a_broker_that_is_away(local: Settings) -> None:
    url = f"redis://:hunter2secret@127.0.0.1:{free_port()}/0"
    wrong = failing(local, broker_url=url)
    assert wrong["broker"].startswith("the broker does not answer")
    assert "hunter2secret" not in json.dumps(wrong)


def test_a_store_that_takes_nothing(local: Settings) -> None:
    local.artifacts_dir.write_text("a file where the folder should be")
    assert failing(local)["storage"] == "nothing can be stored"


def test_a_disk_that_is_nearly_full(local: Settings) -> None:
    assert "the disk is nearly full" in failing(local, min_free_bytes=2**60)["storage"]


def test_what_hangs_costs_a_bounded_time_and_one_thread(local: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "CHECK_SECONDS", 0.2)
    monkeypatch.setattr(health, "_FRESH_SECONDS", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and never says anything
        url = f"postgresql://dkl@127.0.0.1:{silent.getsockname()[1]}/dkl"
        app = TestClient(create_app(local.model_copy(update={"database_url": url})))
        began = time.monotonic()
        for _ in range(4):
            checks = app.get("/readyz").json()["checks"]
            assert checks["database"] == {"ok": False, "says": "no answer within 0.2 s"}
            assert checks["storage"]["ok"]
        assert time.monotonic() - began < 3
        assert sum(thread.name == "readiness" for thread in threading.enumerate()) <= 3


def test_asking_often_looks_once(local: Settings) -> None:
    app = create_app(local)
    looked = []
    app.state.checks._checks = {"database": lambda: looked.append(1) or "fine"}
    with TestClient(app) as client:
        threads = [threading.Thread(target=client.get, args=("/readyz",)) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(looked) <= 2


# --- metrics ----------------------------------------------------------------------------------------------


def add_job(db: Engine, number: int, status: str, **fields: Any) -> str:
    with writing(db) as session:
        at = clock(session)
        times = {name: at + fields.pop(name) for name in ("created", "started", "finished") if name in fields}
        job = Job(
            id=f"{number:012x}",
            kind=fields.pop("kind", "train"),
            recipe={},
            fingerprint="0" * 64,
            dataset="digits",
            status=status,
            created_at=times.get("created", at),
            started_at=times.get("started"),
            finished_at=times.get("finished"),
            **fields,
        )
        session.add(job)
        return job.id


def add_worker(db: Engine, name: str, silent_for: float = 0, **fields: Any) -> None:
    described = {
        "host": "host", "pid": 1, "device": "NVIDIA H200", "gpus": 1, "gpu_memory": 140.0, "processes": 1,
        "versions": {}, "queues": ["gpu"], "draining": False,
    }  # fmt: skip
    with writing(db) as session:
        at = clock(session) - silent_for
        session.add(Worker(name=name, started_at=at, beat_at=at, **{**described, **fields}))


def add(db: Engine, *rows: object) -> None:
    with writing(db) as session:
        session.add_all(rows)


def scraped(client: TestClient) -> dict[str, dict[tuple[str, ...], float]]:
    """Every sample by name and the values of its labels, in the order of the labels' names."""
    answer = client.get("/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=")
    samples: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(answer.text):
        assert family.documentation
        for sample in family.samples:
            samples.setdefault(sample.name, {})[tuple(value for _, value in sorted(sample.labels.items()))] = (
                sample.value
            )
    return samples


def test_metrics_say_how_jobs_workers_and_files_are_doing(client: TestClient, db: Engine) -> None:
    add_job(db, 1, "queued", created=-100)
    add_job(db, 2, "queued", created=-50, queue="long")
    add_job(db, 3, "running", created=-100, started=-90, attempt=2, losses=1)
    add_job(db, 4, "succeeded", created=-1000, started=-990, finished=-890, attempt=1)
    add_job(db, 5, "succeeded", created=-1000, started=-600, finished=-590, attempt=1)
    add_job(db, 6, "failed", created=-500, started=-400, finished=-100, kind="evaluate", attempt=3, losses=3)
    add_job(db, 7, "canceled", created=-500, finished=-400)
    add_worker(db, "a", gpu_use=0.75, gpu_memory_used=70.0)
    add_worker(db, "b", draining=True, queues=["gpu", "long"])
    add_worker(db, "c", silent_for=600, gpu_use=0.5)
    with reading(db) as session:
        at = clock(session)
    add(
        db,
        Seat(job_id=f"{3:012x}", attempt=2, worker="a", taken_at=at, lease_until=at + 60, progress_at=at),
        Seat(job_id=f"{6:012x}", attempt=3, worker="c", taken_at=at, lease_until=at - 60, progress_at=at),
        Artifact(sha256="a" * 64, size=3 * 2**33, created_at=at),
        Upload(id="u", name="x", size=5000, sha256="b" * 64, created_at=at, touched_at=at),
        Delivery(id="1", job_id=f"{4:012x}", url="https://x.org", due_at=at + 1e6, created_at=at),
        Delivery(id="2", job_id=f"{4:012x}", url="https://x.org", tries=8, created_at=at),
    )
    found = scraped(client)
    jobs = found["dklbench_jobs"]
    for kind, queue, status, number in (
        ("train", "gpu", "queued", 1),
        ("train", "long", "queued", 1),
        ("train", "gpu", "running", 1),
        ("train", "gpu", "succeeded", 2),
        ("train", "gpu", "failed", 0),
        ("evaluate", "gpu", "failed", 1),
    ):
        assert jobs[kind, queue, status] == number
    assert found["dklbench_job_losses"] == {("train", "gpu", "running"): 1, ("evaluate", "gpu", "failed"): 3}
    assert found["dklbench_claims_total"]["train", "gpu"] == 4
    assert found["dklbench_queue_depth"] == {("gpu",): 1, ("long",): 1}
    assert found["dklbench_queue_oldest_seconds"]["gpu",] == pytest.approx(100, abs=5)
    assert (found["dklbench_seats"][()], found["dklbench_seats_expired"][()]) == (2, 1)
    assert found["dklbench_workers"] == {("gpu", "live"): 1, ("gpu", "draining"): 1, ("long", "draining"): 1}
    assert found["dklbench_worker_gpu_use_ratio"] == {("a",): 0.75}
    assert found["dklbench_worker_gpu_memory_used_bytes"] == {("a",): 70 * 2**30}
    assert found["dklbench_worker_gpu_memory_bytes"]["a",] == 140 * 2**30
    assert (found["dklbench_stored_files"][()], found["dklbench_stored_bytes"][()]) == (1, 3 * 2**33)
    assert (found["dklbench_uploads"][()], found["dklbench_uploads_bytes"][()]) == (1, 5000)
    assert found["dklbench_webhooks"] == {("due",): 0, ("later",): 1, ("delivered",): 0, ("given up",): 1}
    assert found["dklbench_disk_free_bytes"][()] > 0
    assert found["dklbench_leases_expired_total"].keys() == {("silent",), ("stalled",)}
    assert found["process_resident_memory_bytes"][()] > 0

    waits, runs = found["dklbench_job_wait_seconds_bucket"], found["dklbench_job_run_seconds_bucket"]
    assert [waits["train", bound, "gpu"] for bound in ("5.0", "15.0", "300.0", "900.0", "+Inf")] == [0, 2, 2, 3, 3]
    assert found["dklbench_job_wait_seconds_count"]["train", "gpu"] == 3
    assert found["dklbench_job_wait_seconds_sum"]["train", "gpu"] == pytest.approx(420)
    assert [runs["train", bound, "gpu", "succeeded"] for bound in ("5.0", "15.0", "300.0", "+Inf")] == [0, 1, 2, 2]
    assert found["dklbench_job_run_seconds_sum"]["train", "gpu", "succeeded"] == pytest.approx(110)
    assert runs["train", "+Inf", "gpu", "canceled"] == 0  # it never ran


def test_an_empty_ledger_has_metrics_too(client: TestClient) -> None:
    assert scraped(client)["dklbench_seats"][()] == 0


def test_metrics_time_requests_by_route_and_status(client: TestClient) -> None:
    client.get("/api/v1/jobs")
    client.get("/api/v1/jobs/0123456789ab")
    client.get("/api/v1/jobs/ba9876543210")
    client.get("/nothing/dkl_0a1b2c3d4e5f_secret")
    client.get("/static/nothing")
    client.request("BREW", "/api/v1/jobs")
    counts = scraped(client)["dklbench_http_request_seconds_count"]
    assert counts["GET", "/api/v1/jobs", "200"] == 1
    assert counts["GET", "/api/v1/jobs/{job_id}", "404"] == 2
    assert counts["GET", "none", "404"] == 1
    assert counts["GET", "/static", "404"] == 1
    assert any(method == "other" for method, _, _ in counts)
    assert not any("secret" in route for _, route, _ in counts)


def test_metrics_need_the_scope_read(local: Settings) -> None:
    closed = local.model_copy(update={"anonymous": "leaderboard"})
    db = connect(closed.database)
    text = make_key(db, closed, "prometheus", "read")
    db.dispose()
    assert ask(closed, "/metrics").status_code == 401
    assert ask(closed, "/metrics", Authorization=f"Bearer {text}").status_code == 200


def test_a_job_that_is_taken_back_is_counted(client: TestClient, db: Engine) -> None:
    add_job(db, 1, "running", started=-90, attempt=1)
    with reading(db) as session:
        at = clock(session)
    add(db, Seat(job_id=f"{1:012x}", attempt=1, worker="a", taken_at=at, lease_until=at - 5, progress_at=at))
    wait_until(lambda: client.get("/api/v1/jobs/000000000001").json()["status"] == "queued", 10)
    assert scraped(client)["dklbench_leases_expired_total"]["silent",] == 1


# --- webhooks ---------------------------------------------------------------------------------------------


def test_the_service_sends_what_is_due_and_not_to_itself(client: TestClient, db: Engine) -> None:
    add_job(db, 1, "succeeded", created=-9, started=-8, finished=-7)
    with reading(db) as session:
        at = clock(session)
    add(db, Delivery(id="w", job_id=f"{1:012x}", url="https://127.0.0.1/", due_at=at, created_at=at))

    def told() -> str | None:
        with reading(db) as session:
            return session.scalars(select(Delivery.error)).one()

    wait_until(told, 10)
    assert told() == "webhooks go to the public internet only, and 127.0.0.1 is not there"


def test_every_key_has_a_webhook_secret_of_its_own(local: Settings) -> None:
    db = connect(local.database)
    made = [make_key(db, local, name, "submit") for name in ("a", "b")]
    db.dispose()
    secrets = [
        ask(local, "/api/v1/webhooks/secret", Authorization=f"Bearer {text}").json()["secret"] for text in made
    ]
    assert len(set(secrets)) == 2
    assert all(secret.startswith("whsec_") for secret in secrets)
    assert ask(local, "/api/v1/webhooks/secret").json()["secret"] not in secrets


# --- logs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sent", "kept"), [("7f3a-proxy.1", True), ("short", False), ("evil\u00e9id", False)])
def test_a_request_has_an_id(local: Settings, sent: str, kept: bool) -> None:
    answer = ask(local, "/livez", **{"X-Request-ID": sent.encode("latin-1")})  # type: ignore[arg-type]
    assert (answer.headers["X-Request-ID"] == sent) == kept
    assert len(answer.headers["X-Request-ID"]) >= 8


def test_a_service_process_logs_json_lines_without_secrets(
    processes: Processes, settings: Settings, tmp_path: Path
) -> None:
    chosen = settings.model_copy(update={"log_format": "json", "anonymous": "nothing", "port": free_port()})
    db = connect(chosen.database)
    migrate(db)
    text = make_key(db, chosen, "anna", "submit")
    db.dispose()
    process = processes.start(str(BIN / "dklbench"), "serve", environment=chosen.as_environment())
    url = f"http://127.0.0.1:{chosen.port}"
    with httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {text}"}) as http:
        wait_until(lambda: process.poll() is not None or listens(chosen.port), what="the service")
        answer = http.get("/api/v1/jobs/0123456789ab?token=hunter2secret", headers={"X-Request-ID": "trace-0001"})
        assert answer.status_code == 404
        assert "server" not in answer.headers
        http.get("/livez")
        http.get("/api/v1/jobs", headers={"Authorization": f"Bearer {text[:-1]}0"})
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    said = processes.output()
    lines = [json.loads(line) for line in said.splitlines() if line]
    answered = [line for line in lines if line["event"] == "answered"]
    first, second = answered  # /livez is for debugging
    assert first["request_id"] == "trace-0001"
    assert (first["method"], first["route"], first["status"]) == ("GET", "/api/v1/jobs/{job_id}", 404)
    assert first["key"] == text.split("_")[1]
    assert first["address"] == "127.0.0.1"
    assert (second["status"], "key" in second) == (401, False)
    assert {line["logger"] for line in lines} >= {"uvicorn.error", "service.observed"}
    assert text.split("_", 2)[2] not in said
    assert "hunter2secret" not in said


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# --- worker-health ----------------------------------------------------------------------------------------


def test_worker_health_goes_by_the_heartbeat_of_this_host(local: Settings) -> None:
    local = local.model_copy(update={"lease_seconds": 60.0})

    def healthy() -> subprocess.CompletedProcess[str]:
        command = [str(BIN / "dklbench"), "worker-health"]
        return subprocess.run(command, env=local.as_environment(), capture_output=True, text=True, check=False)

    db = connect(local.database)
    add_worker(db, "elsewhere", host="other-host")
    add_worker(db, "silent", host=socket.gethostname(), silent_for=61)
    answer = healthy()
    assert (answer.returncode, answer.stdout) == (1, "")
    assert "has beaten within the last 60 s" in answer.stderr
    add_worker(db, "here", host=socket.gethostname())
    answer = healthy()
    assert (answer.returncode, answer.stdout) == (0, "here is alive\n")
    db.dispose()


def test_worker_health_imports_no_torch() -> None:
    program = (
        "import sys; sys.argv[1:] = ['worker-health']; from service.cli import app\n"
        "try: app()\nexcept BaseException: pass\nassert 'service.tables' in sys.modules\n"
        "print(sorted({'torch', 'fastapi', 'celery'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[-1] == "[]"
