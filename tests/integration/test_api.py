"""The REST interface on a real database: what it answers, and what it says to bad input."""

import json
from collections.abc import Iterator

import pytest
from samples import EPOCH, JUDGED, PROGRESS, TRAINED
from sqlalchemy import Engine, func, select
from starlette.testclient import TestClient

from service import jobs
from service.app import create_app
from service.db import Job, reading
from service.settings import Settings


@pytest.fixture
def client(db: Engine, database_url: str, settings: Settings) -> Iterator[TestClient]:
    app = create_app(settings.model_copy(update={"database_url": database_url}))
    with TestClient(app) as client:
        yield client


def submit(client: TestClient, name: str = "natural-digits", **overrides: object) -> str:
    response = client.post("/api/v1/jobs", json={"name": name, "overrides": overrides})
    assert response.status_code == 201, response.text
    return response.json()["id"]


def run(db: Engine, job_id: str, finished=TRAINED) -> None:
    """What a worker would do, without the work."""
    claim = jobs.claim(db, job_id, worker="w", lease_seconds=60)
    assert claim is not None
    jobs.append(db, claim, EPOCH)
    jobs.append(db, claim, PROGRESS)
    jobs.finish(db, claim, finished)


def sse(text: str) -> list[dict]:
    """The events of a stream, as dictionaries of their fields."""
    blocks = (block for block in text.split("\n\n") if block.strip())
    return [dict(line.split(": ", 1) for line in block.splitlines()) for block in blocks]


def test_health(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}


def test_a_job_is_stored_exactly_as_the_recipe_was_meant(client: TestClient) -> None:
    job_id = submit(client, "ikl-at-digits", **{"threat.eps": "4/255", "epochs": 3})
    job = client.get(f"/api/v1/jobs/{job_id}").json()
    assert job["status"] == "queued"
    assert job["recipe"]["threat"] == {"norm": "Linf", "eps": 4 / 255}
    assert job["recipe"]["epochs"] == 3
    again = client.post("/api/v1/jobs", json={"recipe": job["recipe"]}).json()
    assert again["fingerprint"] == job["fingerprint"]
    assert [j["id"] for j in client.get("/api/v1/jobs").json()] == [again["id"], job_id]
    assert client.get("/api/v1/jobs", params={"status": "failed"}).json() == []


def test_recipes(client: TestClient) -> None:
    listed = {recipe["name"]: recipe for recipe in client.get("/api/v1/recipes").json()}
    assert listed["autoattack-cifar10-linf"]["needs"] == ["model"]
    one = client.get("/api/v1/recipes/ikl-at-cifar100-wrn-34-10").json()
    assert one == listed["ikl-at-cifar100-wrn-34-10"]
    assert one["published"]["robust_accuracy"] == 0.3191
    assert client.get("/api/v1/recipes/ikl-at-cifar100").status_code == 404


def test_events_replay_resume_and_end(client: TestClient, db: Engine) -> None:
    job_id = submit(client)
    run(db, job_id)
    stream = client.get(f"/api/v1/jobs/{job_id}/events")
    assert stream.headers["content-type"].startswith("text/event-stream")
    events = sse(stream.text)
    kinds = [e["event"] for e in events]
    assert kinds == ["progress", "status", "status", "epoch", "finished", "status", "end"]
    epoch = next(e for e in events if e["event"] == "epoch")
    assert json.loads(epoch["data"])["loss"] == EPOCH.loss
    rest = client.get(f"/api/v1/jobs/{job_id}/events", headers={"Last-Event-ID": epoch["id"]})
    assert [e["event"] for e in sse(rest.text)] == ["progress", "finished", "status", "end"]


def test_the_leaderboard_ranks_what_was_measured(client: TestClient, db: Engine) -> None:
    for name, robust in [("natural-digits", 0.1), ("ikl-at-digits", 0.6)]:
        training = submit(client, name)
        run(db, training)
        judging = submit(client, "autoattack-digits-linf", **{"model.job": training})
        result = JUDGED.result.model_copy(update={"robust_accuracy": robust})
        run(db, judging, JUDGED.model_copy(update={"result": result}))
    found = client.get("/api/v1/leaderboard", params={"dataset": "digits"}).json()
    assert found["board"]["title"].startswith("Handwritten digits, Linf, eps ")
    rows = [(row["rank"], row["name"], row["robust_accuracy"], row["source"]) for row in found["rows"]]
    assert rows == [(1, "ikl-at-digits", 0.6, "measured"), (2, "natural-digits", 0.1, "measured")]
    upwards = client.get("/api/v1/leaderboard", params={"dataset": "digits", "sort": "robust_accuracy"}).json()
    assert [row["rank"] for row in upwards["rows"]] == [2, 1]
    searched = client.get("/api/v1/leaderboard", params={"dataset": "digits", "search": "IKL"}).json()
    assert [row["rank"] for row in searched["rows"]] == [1]
    assert client.get("/api/v1/leaderboard", params={"dataset": "mnist"}).json()["rows"] == []


def test_published_rows_stand_beside_the_measured(client: TestClient) -> None:
    found = client.get("/api/v1/leaderboard", params={"dataset": "cifar100"}).json()
    assert [(r["name"], r["source"]) for r in found["rows"]] == [("ikl-at-cifar100-wrn-34-10", "published")]


def test_cancelling(client: TestClient, db: Engine) -> None:
    job_id = submit(client)
    assert client.post(f"/api/v1/jobs/{job_id}/cancel").json()["status"] == "canceled"
    done = submit(client)
    run(db, done)
    late = client.post(f"/api/v1/jobs/{done}/cancel")
    assert late.status_code == 409
    assert "already succeeded" in late.json()["detail"]


TRAINING = {
    "kind": "train",
    "dataset": "digits",
    "model": {"kind": "cnn"},
    "objective": {"kind": "natural"},
    "epochs": 1,
}
BAD_JOBS = {
    "an unknown recipe": ({"name": "ikl-at-digit"}, "did you mean ikl-at-digits"),
    "neither name nor recipe": ({}, "give either name"),
    "name and recipe": ({"name": "natural-digits", "recipe": TRAINING}, "give either name"),
    "overrides of a recipe": ({"recipe": TRAINING, "overrides": {"epochs": 2}}, "overrides go with name"),
    "an unknown field": ({"recipe": {**TRAINING, "epoch": 2}}, "recipe.epoch: is no field here; the fields are"),
    "an unknown inner field": (
        {"recipe": {**TRAINING, "model": {"kind": "cnn", "widht": 2}}},
        "recipe.model.widht: is no field here; the fields are kind, width",
    ),
    "an unknown override": ({"name": "natural-digits", "overrides": {"a..b": 1}}, "a: is no field here"),
    "an unknown kind": ({"recipe": {"kind": "tune"}}, "kind must be 'train', 'evaluate', found 'tune'"),
    "an unknown dataset": ({"recipe": {**TRAINING, "dataset": "mnist"}}, "choose from digits, cifar10, cifar100"),
    "a path as a dataset": ({"recipe": {**TRAINING, "dataset": "npz:../../etc/passwd"}}, "unknown dataset"),
    "an unknown norm": (
        {"name": "ikl-at-digits", "overrides": {"threat.norm": "L7"}},
        "threat.norm: must be 'Linf', 'L2' or 'L1', found 'L7'",
    ),
    "a negative eps": (
        {"name": "ikl-at-digits", "overrides": {"threat.eps": -0.1}},
        "threat.eps: must be greater than 0, found -0.1",
    ),
    "an eps in 255ths": ({"name": "ikl-at-digits", "overrides": {"threat.eps": 8}}, "did you mean '8/255'?"),
    "an eps that is no number": ({"name": "ikl-at-digits", "overrides": {"threat.eps": "big"}}, "such as '8/255'"),
    "a division by zero": ({"name": "ikl-at-digits", "overrides": {"threat.eps": "8/0"}}, "such as '8/255'"),
    "a string for a number": (
        {"name": "natural-digits", "overrides": {"epochs": "10"}},
        "epochs: must be a whole number, found '10'",
    ),
    "a truth for a number": (
        {"name": "natural-digits", "overrides": {"optimizer.lr": True}},
        "optimizer.lr: must be a number, found True",
    ),
    "no epochs": ({"name": "natural-digits", "overrides": {"epochs": 0}}, "greater than or equal to 1"),
    "a threat without defence": (
        {"name": "natural-digits", "overrides": {"threat": {"norm": "Linf", "eps": 0.1}}},
        "natural training takes no threat",
    ),
    "a defence without threat": (
        {"name": "ikl-at-digits", "overrides": {"threat": None}},
        "the objective 'ikl' needs threat",
    ),
    "an impossible depth": (
        {"name": "natural-digits", "overrides": {"model": {"kind": "wide-resnet", "depth": 33, "width": 1}}},
        "depth must be 6n + 4",
    ),
    "an evaluation without a model": ({"name": "autoattack-digits-linf"}, "model: is missing: Which model:"),
    "an evaluation of nothing": (
        {"name": "autoattack-digits-linf", "overrides": {"model.job": "0" * 12}},
        "there is no job 000000000000",
    ),
    "an evaluation of a checkpoint that is not here": (
        {"name": "autoattack-digits-linf", "overrides": {"model.checkpoint": "0" * 64}},
        "no checkpoint with sha256 0000",
    ),
    "an evaluation of a path": (
        {"name": "autoattack-digits-linf", "overrides": {"model.path": "/etc/passwd"}},
        "say which model to judge",
    ),
    "an unknown suite": (
        {"name": "autoattack-digits-linf", "overrides": {"model.job": "0" * 12, "suite": "fast"}},
        "suite: must be 'standard', 'plus' or 'rand', found 'fast'",
    ),
    "an unknown attack": (
        {"name": "autoattack-digits-linf", "overrides": {"model.job": "0" * 12, "suite": [{"kind": "fgsm"}]}},
        "found 'fgsm'",
    ),
    "an empty suite": (
        {"name": "autoattack-digits-linf", "overrides": {"model.job": "0" * 12, "suite": []}},
        "at least 1 item",
    ),
    "a list": ([1], "must be a JSON object"),
    "a name that is no string": ({"name": 3}, "name: must be a valid string, found 3"),
}


@pytest.mark.parametrize("case", BAD_JOBS)
def test_bad_jobs_get_a_sentence_and_leave_nothing(client: TestClient, db: Engine, case: str) -> None:
    body, sentence = BAD_JOBS[case]
    response = client.post("/api/v1/jobs", json=body)
    assert response.status_code == 422
    assert sentence in response.json()["detail"]
    with reading(db) as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 0


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b'{"name": ', "the body is not valid JSON: Expecting value, at character 9"),
        (b"name=x", "must be a JSON object"),
        (b'{"name": "natural-digits", "overrides": {"optimizer.lr": NaN}}', "optimizer.lr"),
        (b'{"name": "natural-digits", "overrides": {"epochs": 1e999}}', "epochs: must be a whole number"),
        (b'{"overrides":' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}", ""),
    ],
)
def test_malformed_bodies(client: TestClient, body: bytes, sentence: str) -> None:
    content_type = "text/plain" if body == b"name=x" else "application/json"
    response = client.post("/api/v1/jobs", content=body, headers={"Content-Type": content_type})
    assert 400 <= response.status_code < 500
    assert sentence in response.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/v1/jobs/000000000000", 404),
        ("GET", "/api/v1/jobs/000000000000/events", 404),
        ("POST", "/api/v1/jobs/000000000000/cancel", 404),
        ("GET", "/api/v1/jobs/%00", 404),
        ("GET", "/api/v1/jobs?limit=0", 422),
        ("GET", "/api/v1/jobs?status=lost", 422),
        ("GET", "/api/v1/leaderboard?eps=nan", 422),
        ("GET", "/api/v1/leaderboard?norm=L7", 422),
        ("GET", "/api/v1/leaderboard?sort=recipe", 422),
        ("PUT", "/api/v1/jobs", 405),
        ("GET", "/api/v1/nothing", 404),
    ],
)
def test_bad_requests_get_a_sentence(client: TestClient, method: str, path: str, status: int) -> None:
    response = client.request(method, path)
    assert response.status_code == status
    assert set(response.json()) == {"detail", "errors"}
    assert response.json()["detail"]


def test_openapi_keeps_the_recipes_discriminator(client: TestClient) -> None:
    schemas = client.get("/api/openapi.json").json()["components"]["schemas"]
    recipe = schemas["JobRequest"]["properties"]["recipe"]["anyOf"][0]
    assert set(recipe["discriminator"]["mapping"]) == {"train", "evaluate"}
    assert schemas["ThreatModel"]["properties"]["eps"]["description"].startswith("Radius of the ball")
