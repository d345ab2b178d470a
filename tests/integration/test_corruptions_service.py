"""Common corruptions as a job: waiting for its model, its table on the page, and what other pages make of it."""

import threading
from collections.abc import Iterator

import pytest
from samples import TRAINED
from sqlalchemy import Engine
from starlette.testclient import TestClient

from dkl.events import CorruptionDone
from service import claims, jobs
from service.app import create_app
from service.db import connect, migrate
from service.moves import TERMINAL
from service.settings import Settings
from workers.hardware import describe
from workers.run import run_next

SMALL = {"epochs": 1, "model.width": 2, "images": 256}
FEW = {"corruptions": ["brightness", "gaussian_noise"], "severities": [1, 5], "images": 40}


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Engine]:
    engine = connect(settings.database)
    migrate(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def client(ledger: Engine, settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings)) as client:
        yield client


def submit(client: TestClient, name: str, overrides: dict[str, object]) -> str:
    response = client.post("/api/v1/jobs", json={"name": name, "overrides": overrides})
    assert response.status_code == 201, response.text
    return response.json()["id"]


def work(job_id: str, settings: Settings, ledger: Engine) -> None:
    assert run_next(worker=describe("w", settings), settings=settings, db=ledger, halt=threading.Event())
    assert jobs.get(ledger, job_id).status in TERMINAL  # it was the next


def page(client: TestClient, job_id: str) -> str:
    response = client.get(f"/jobs/{job_id}", headers={"Accept": "text/html"})
    assert response.status_code == 200
    return " ".join(response.text.split())


def test_from_submission_to_the_table(client: TestClient, ledger: Engine, settings: Settings) -> None:
    pytest.importorskip("imagecorruptions")
    training = submit(client, "natural-digits", SMALL)
    judging = submit(client, "corruptions-digits", {"model.job": training, **FEW})
    queued = client.get(f"/api/v1/jobs/{judging}").json()
    assert (queued["kind"], queued["status"], queued["parent_id"]) == ("corruptions", "queued", training)
    assert "No corruption is done yet." in page(client, judging)
    work(training, settings, ledger)
    work(judging, settings, ledger)

    job = client.get(f"/api/v1/jobs/{judging}").json()
    assert job["status"] == "succeeded", job["reason"]
    result = job["result"]
    assert [row["corruption"] for row in result["table"]] == FEW["corruptions"]
    assert (
        result["checkpoint_sha256"] == client.get(f"/api/v1/jobs/{training}").json()["result"]["checkpoint_sha256"]
    )
    cells = [accuracy for row in result["table"] for accuracy in row["accuracies"]]
    assert result["corruption_accuracy"] == pytest.approx(sum(cells) / 4)
    stream = client.get(f"/api/v1/jobs/{judging}/events").text
    assert stream.count("event: corruption") == 5

    shown = page(client, judging)
    for accuracy in cells:
        assert f">{100 * accuracy:.1f}</td>" in shown
    assert '<th scope="row">gaussian noise</th>' in shown
    assert result["notes"][0] in shown
    assert "are done" not in shown
    assert f"corrupted <b>{100 * result['corruption_accuracy']:.2f} %" in page(client, training)
    assert "corruptions-digits" in client.get("/jobs", headers={"Accept": "text/html"}).text
    board = client.get("/api/v1/leaderboard").json()
    assert all(row["job_id"] != judging for row in board["rows"])


def test_the_table_fills_while_it_runs(client: TestClient, ledger: Engine) -> None:
    training = submit(client, "natural-digits", SMALL)
    trained = claims.claim(ledger, training, worker="w", lease_seconds=60)
    assert trained is not None
    claims.finish(ledger, trained, TRAINED)
    judging = submit(client, "corruptions-digits", {"model.job": training, **FEW})
    claim = claims.claim(ledger, judging, worker="w", lease_seconds=60)
    assert claim is not None
    assert claim.checkpoint == "a" * 64
    for severity, accuracy in ((1, 1.0), (5, 0.0)):
        event = CorruptionDone(
            corruption="brightness", severity=severity, images=40, accuracy=accuracy, not_finite=0, seconds=1.0
        )
        assert claims.append(ledger, claim, event)
        assert claims.append(ledger, claim, event)  # a resumed run says it again
    shown = page(client, judging)
    assert "2 of 4 cells are done" in shown
    assert '<td class="n shade-10">100.0</td><td class="n shade-0">0.0</td><td class="n mean">50.0</td>' in shown
    dash = "\N{EN DASH}</td>"
    assert f'<td class="n none">{dash}<td class="n none">{dash}<td class="n mean">{dash}' in shown


def test_what_cannot_be_asked(client: TestClient) -> None:
    training = submit(client, "natural-digits", SMALL)
    judging = submit(client, "corruptions-digits", {"model.job": training, **FEW})
    for overrides, status, sentence in [
        ({"model.job": judging}, 422, f"job {judging} is an evaluation and has no model"),
        ({"model.checkpoint": "0" * 64}, 422, "no checkpoint with sha256"),
        ({}, 422, "model: is missing"),
        ({"model.job": training, "source": "published"}, 422, "there are no published corruptions of digits"),
    ]:
        response = client.post("/api/v1/jobs", json={"name": "corruptions-digits", "overrides": overrides})
        assert (response.status_code, sentence in response.text) == (status, True), response.text


def test_missing_files_end_the_job_with_the_way_out(
    client: TestClient, ledger: Engine, settings: Settings
) -> None:
    settings.datasets_dir.mkdir(parents=True, exist_ok=True)
    training = submit(client, "natural-digits", SMALL)
    work(training, settings, ledger)
    judging = submit(client, "corruptions-digits", {"model.job": training, "corruptions": ["snow"]})
    work(judging, settings, ledger)
    job = client.get(f"/api/v1/jobs/{judging}").json()
    assert job["status"] == "failed"
    assert job["reason"].startswith("snow cannot be generated for images of 8 x 8 pixels: they need 32 x 32")
