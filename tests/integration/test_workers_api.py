"""What the interface says about workers, and draining one through it."""

from collections.abc import Iterator

import pytest
from samples import TRAIN
from sqlalchemy import Engine, update
from starlette.testclient import TestClient

from service import audit, claims, jobs, keys, registry
from service.app import create_app
from service.callers import COMMAND_LINE
from service.db import writing
from service.registry import Description, Use
from service.settings import Settings
from service.tables import Worker

GPU = Description(
    *("celery@host/4711", "host", 4711, "NVIDIA H200", 1, 139.8, 1, {"torch": "2.11.0"}, ("gpu", "night"))
)
CPU = Description("box/cpu", "box", 12, "x86_64", 0, 0.0, 4, {}, ("gpu",))


@pytest.fixture
def client(db: Engine, database_url: str, settings: Settings) -> Iterator[TestClient]:
    app = create_app(settings.model_copy(update={"database_url": database_url}))
    with TestClient(app) as client:
        yield client


@pytest.fixture
def admin(db: Engine, settings: Settings) -> dict[str, str]:
    wanted = keys.KeyRequest(name="boss", scope="admin")
    return {"Authorization": f"Bearer {keys.create(db, settings, wanted, caller=COMMAND_LINE)[1]}"}


def states(client: TestClient) -> dict[str, str]:
    return {worker["name"]: worker["state"] for worker in client.get("/api/v1/workers").json()}


def test_a_worker_tells_what_it_is_and_what_it_is_at(client: TestClient, db: Engine, settings: Settings) -> None:
    assert client.get("/api/v1/workers").json() == []
    for description in (GPU, CPU):
        registry.arrive(db, description)
    registry.beat(db, GPU, Use(0.97, 61.2))
    job = jobs.create(db, TRAIN)
    claims.claim(db, job.id, worker=GPU.name, lease_seconds=60)
    idle, busy = client.get("/api/v1/workers").json()
    assert (idle["name"], idle["state"], idle["jobs"], idle["gpu_use"]) == ("box/cpu", "idle", [], None)
    assert 0 <= busy.pop("seconds_since_beat") < settings.lease_seconds
    assert busy.pop("started_at") <= busy.pop("beat_at")
    assert busy == {
        **{"name": GPU.name, "host": "host", "pid": 4711, "device": "NVIDIA H200", "gpus": 1, "gpu_memory": 139.8},
        **{"processes": 1, "versions": {"torch": "2.11.0"}, "queues": ["gpu", "night"], "plugins": {}},
        **{"draining": False, "state": "working", "jobs": [job.id], "gpu_use": 0.97, "gpu_memory_used": 61.2},
    }
    assert client.get(f"/api/v1/jobs/{job.id}").json()["workers"] == [GPU.name]


def test_states(client: TestClient, db: Engine, settings: Settings) -> None:
    registry.arrive(db, GPU)
    registry.arrive(db, CPU)
    jobs_at = claims.claim(db, jobs.create(db, TRAIN).id, worker=GPU.name, lease_seconds=60)
    assert jobs_at is not None
    registry.drain(db, GPU.name, caller=COMMAND_LINE)
    assert states(client) == {CPU.name: "idle", GPU.name: "draining"}
    with writing(db) as session:
        quiet = Worker.beat_at - settings.lease_seconds - 1
        session.execute(update(Worker).where(Worker.name == GPU.name).values(beat_at=quiet))
    assert states(client) == {CPU.name: "idle", GPU.name: "silent"}
    assert list(states(client)) == [CPU.name, GPU.name]  # the silent one last


def test_draining_and_resuming(client: TestClient, db: Engine, admin: dict[str, str]) -> None:
    registry.arrive(db, GPU)
    for action, draining in (("drain", True), ("drain", True), ("resume", False)):
        answer = client.post(f"/api/v1/workers/{action}", json={"name": GPU.name}, headers=admin)
        assert (answer.status_code, answer.json()["draining"]) == (200, draining)
        assert registry.is_draining(db, GPU.name) == draining
    written = [(event.action, event.object) for event in audit.recent(db) if event.action.startswith("worker.")]
    assert written == [("worker.resume", GPU.name), ("worker.drain", GPU.name)]


@pytest.mark.parametrize("action", ["drain", "resume"])
def test_only_admins_drain(client: TestClient, db: Engine, action: str) -> None:
    registry.arrive(db, GPU)
    answer = client.post(f"/api/v1/workers/{action}", json={"name": GPU.name})
    assert answer.status_code == 401
    assert not registry.is_draining(db, GPU.name)
    page = client.post(f"/workers/{action}", params={"name": GPU.name}, headers={"Accept": "text/html"})
    assert page.status_code == 401


@pytest.mark.parametrize(
    ("name", "status", "sentence"),
    [
        ("nobody/1", 404, "there is no worker 'nobody/1'; the list of workers has them all"),
        ("x" * 201, 422, "name"),
        ("", 422, "name"),
        ("a\x00b", 422, "name"),
        (7, 422, "name"),
    ],
)
def test_names_that_are_none(
    client: TestClient, admin: dict[str, str], name: object, status: int, sentence: str
) -> None:
    answer = client.post("/api/v1/workers/drain", json={"name": name}, headers=admin)
    assert (answer.status_code, sentence in answer.json()["detail"]) == (status, True), answer.text
    page = client.post("/workers/drain", params={"name": name}, headers={**admin, "Accept": "text/html"})
    assert page.status_code in {404, 422}
