"""The REST interface on a real database: what it answers, and what it says to bad input."""

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from samples import BATCH, EPOCH, JUDGED, PROGRESS, TRAINED
from sqlalchemy import Engine, func, select, update
from starlette.testclient import TestClient

from dkl.catalog import RECIPES
from dkl.events import Adjusted, Finished
from service import claims
from service.app import create_app
from service.artifacts import store_for
from service.db import reading, writing
from service.settings import Settings
from service.tables import Job


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
    claim = claims.claim(db, job_id, worker="w", lease_seconds=60)
    assert claim is not None
    claims.append(db, claim, EPOCH)
    claims.append(db, claim, PROGRESS)
    claims.finish(db, claim, finished)


def judge(client: TestClient, db: Engine, robust: float, overrides: dict | None = None, **result: object) -> str:
    """An evaluation that found this robust accuracy."""
    training = submit(client, "ikl-at-digits")
    run(db, training)
    judging = submit(client, "autoattack-digits-linf", **{"model.job": training}, **(overrides or {}))
    run(db, judging, judged(robust_accuracy=robust, **result))
    return judging


def judged(**changes: object) -> Finished:
    return Finished(result=JUDGED.result.model_copy(update=changes))


def board(client: TestClient) -> list[dict]:
    return client.get("/api/v1/leaderboard", params={"dataset": "digits"}).json()["rows"]


def sse(text: str) -> list[dict]:
    """The events of a stream, as dictionaries of their fields."""
    blocks = (block for block in text.split("\n\n") if block.strip())
    return [dict(line.split(": ", 1) for line in block.splitlines()) for block in blocks]


def test_health(client: TestClient) -> None:
    assert client.get("/livez").json() == {"status": "ok"}


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


def test_the_list_of_jobs_is_narrowed_and_turned(client: TestClient, db: Engine) -> None:
    training, other = submit(client), submit(client, "ikl-at-digits")
    run(db, training)
    judging = submit(client, "autoattack-digits-linf", **{"model.job": training})

    def listed(**query: object) -> list[str]:
        return [job["id"] for job in client.get("/api/v1/jobs", params=query).json()]

    assert listed(kind="train") == [other, training]
    assert listed(kind="train", status="queued") == [other]
    assert listed(limit=2) == [judging, other]
    assert listed(limit=2, before=other) == [training]
    assert listed(before=training) == []
    assert client.get("/api/v1/jobs", params={"before": "0" * 12}).status_code == 404
    for bad in ({"status": "lucky"}, {"kind": "teleport"}, {"limit": 501}, {"limit": "many"}):
        assert client.get("/api/v1/jobs", params=bad).status_code == 422


def test_the_log_is_text_for_people(client: TestClient, db: Engine) -> None:
    job_id = submit(client)
    run(db, job_id)
    answer = client.get(f"/api/v1/jobs/{job_id}/log")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["content-disposition"] == f'inline; filename="{job_id}.log"'
    lines = answer.text.splitlines()
    assert [line.split("  ")[1:] for line in (lines[0], lines[1], lines[-1])] == [
        ["anonymous", "queued"], ["w", "running"], ["w", "succeeded"],
    ]  # fmt: skip
    assert len(lines) == 5
    assert client.get("/api/v1/jobs/000000000000/log").status_code == 404


def test_a_canceled_job_is_resumed(client: TestClient, db: Engine) -> None:
    job_id = submit(client)
    assert client.post(f"/api/v1/jobs/{job_id}/resume").status_code == 409
    client.post(f"/api/v1/jobs/{job_id}/cancel")
    answer = client.post(f"/api/v1/jobs/{job_id}/resume")
    assert answer.status_code == 200
    assert {name: answer.json()[name] for name in ("id", "status", "reason", "position", "finished_at")} == {
        "id": job_id, "status": "queued", "reason": "resumed", "position": 1, "finished_at": None,
    }  # fmt: skip
    run(db, job_id)
    refused = client.post(f"/api/v1/jobs/{job_id}/resume")
    assert refused.status_code == 409
    assert "run it again instead" in refused.json()["detail"]
    assert client.post("/api/v1/jobs/000000000000/resume").status_code == 404


# --- what the pages of jobs answer ------------------------------------------------------------------------

HTML = {"Accept": "text/html"}


@pytest.mark.parametrize(
    "query",
    [
        "status=lucky", "kind=teleport", "page=0", "page=1000000000", "page=two", "mine=perhaps", "search=a%00b",
        "dataset=%01", f"search={'a' * 101}",
    ],
)  # fmt: skip
def test_a_list_that_cannot_be_is_a_page_that_says_so(client: TestClient, query: str) -> None:
    answer = client.get(f"/jobs?{query}", headers=HTML)
    assert answer.status_code == 422
    assert "<h1>" in answer.text


def test_the_page_of_a_training_shows_its_teacher_where_one_learns_along(client: TestClient, db: Engine) -> None:
    said = {"adversarial_accuracy": 0.25, "terms": {"boundary": 0.3, "teacher": 0.2}}
    for name, accuracy in (("lbgat-digits", 0.8765), ("trades-digits", None)):
        job_id = submit(client, name)
        claim = claims.claim(db, job_id, worker="w", lease_seconds=60)
        assert claim is not None
        claims.append(db, claim, EPOCH.model_copy(update={**said, "teacher_accuracy": accuracy}))
        page = client.get(f"/jobs/{job_id}", headers=HTML).text
        curve = client.get(f"/jobs/{job_id}/curves.svg", params={"of": "accuracy"}).text
        assert ("Teacher, %" in page) is (accuracy is not None)
        assert ("87.65" in page) is (accuracy is not None)
        assert ("teacher" in curve) is (accuracy is not None)


def test_a_page_beyond_the_last_leads_back(client: TestClient) -> None:
    submit(client)
    answer = client.get("/jobs?page=7&kind=train", headers=HTML)
    assert answer.status_code == 404
    assert "There is no page 7 of these jobs" in answer.text
    assert 'href="/jobs?kind=train"' in answer.text
    hostile = client.get(
        "/jobs", params={"search": "<script>alert(1)</script>", "dataset": "no such"}, headers=HTML
    )
    assert hostile.status_code == 200
    assert "No job matches" in hostile.text
    assert "<script>alert" not in hostile.text


def test_curves_are_files(client: TestClient, db: Engine) -> None:
    job_id = submit(client)
    assert client.get(f"/jobs/{job_id}/curves.svg?of=loss", headers=HTML).status_code == 404  # no epoch yet
    run(db, job_id)
    for of in ("accuracy", "loss", "rate", "speed"):
        answer = client.get(f"/jobs/{job_id}/curves.svg", params={"of": of})
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/svg+xml"), of
        assert answer.text.startswith("<svg ")
    assert client.get(f"/jobs/{job_id}/curves.svg?of=eps").status_code == 404  # not adversarial
    assert client.get(f"/jobs/{job_id}/curves.svg?of=luck", headers=HTML).status_code == 422
    assert client.get(f"/jobs/{job_id}/curves.svg").status_code == 422
    assert client.get("/jobs/000000000000/curves.svg?of=loss").status_code == 404
    judging = submit(client, "autoattack-digits-linf", **{"model.job": job_id})
    assert client.get(f"/jobs/{judging}/curves.svg?of=loss").status_code == 404


def test_recipes(client: TestClient) -> None:
    listed = {recipe["name"]: recipe for recipe in client.get("/api/v1/recipes").json()}
    assert listed["autoattack-cifar10-linf"]["needs"] == ["model"]
    one = client.get("/api/v1/recipes/ikl-at-cifar100-wrn-34-10").json()
    assert one == listed["ikl-at-cifar100-wrn-34-10"]
    assert (one["published"]["clean_accuracy"], one["published"]["robust_accuracy"]) == (0.6576, 0.3191)
    assert one["published"]["url"].startswith("https://")
    assert listed["natural-digits"]["published"] is None
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


def test_an_evaluation_says_what_each_batch_left_standing(client: TestClient, db: Engine) -> None:
    job_id = submit(client)
    claim = claims.claim(db, job_id, worker="w", lease_seconds=60)
    assert claim is not None
    claims.append(db, claim, BATCH)
    claims.append(db, claim, BATCH)  # a resumed run says it again
    claims.finish(db, claim, JUDGED)
    events = sse(client.get(f"/api/v1/jobs/{job_id}/events").text)
    [batch] = [json.loads(event["data"]) for event in events if event["event"] == "batch"]
    assert (batch["name"], batch["phase"], batch["images"], batch["standing"]) == ("apgd-t", "audit", [3, 5], "01")


def test_a_training_says_what_it_adjusted(client: TestClient, db: Engine) -> None:
    job_id = submit(client)
    claim = claims.claim(db, job_id, worker="w", lease_seconds=60)
    assert claim is not None
    for _ in range(2):  # a resumed run says it again
        claims.append(db, claim, Adjusted(sentence="going on with 64 images at once", micro_batch=64))
    claims.finish(db, claim, TRAINED)
    events = sse(client.get(f"/api/v1/jobs/{job_id}/events").text)
    [adjusted] = [json.loads(event["data"]) for event in events if event["event"] == "adjusted"]
    assert (adjusted["sentence"], adjusted["micro_batch"]) == ("going on with 64 images at once", 64)


def test_a_row_says_what_was_changed_of_the_recipe_it_is_named_after(client: TestClient, db: Engine) -> None:
    as_named, changed = submit(client, "ikl-at-digits", seed=5), submit(client, "ikl-at-digits", epochs=3, seed=5)
    for robust, training in ((0.6, as_named), (0.5, changed)):
        run(db, training)
        judging = submit(client, "autoattack-digits-linf", **{"model.job": training})
        run(db, judging, judged(robust_accuracy=robust))
    assert [row["note"] for row in board(client)] == [None, "The recipe ikl-at-digits, changed in: epochs."]


@pytest.mark.parametrize(
    ("overrides", "published"),
    [({}, 0.5709), ({"seed": 4, "precision": "bfloat16"}, 0.5709), ({"epochs": 3}, None)],
)
def test_a_measured_row_has_the_papers_number_beside_it_if_it_was_trained_as_published(
    client: TestClient, db: Engine, overrides: dict, published: float | None
) -> None:
    training = submit(client, "ikl-at-cifar10-wrn-34-10", **overrides)
    run(db, training)
    run(db, submit(client, "autoattack-cifar10-linf", **{"model.job": training}), judged(robust_accuracy=0.5))
    run(
        db,
        submit(client, "autoattack-cifar10-linf", **{"model.job": training, "threat.eps": "4/255"}),
        judged(robust_accuracy=0.7),
    )

    def rows(eps: float) -> list[dict]:
        query = {"dataset": "cifar10", "threat_model": "Linf", "eps": eps, "limit": 1000}
        found = client.get("/api/v1/leaderboard", params=query).json()["rows"]
        return [row for row in found if row["source"] == "measured"]

    assert [row["published_accuracy"] for row in rows(8 / 255)] == [published]
    assert [row["published_accuracy"] for row in rows(4 / 255)] == [None]  # another question


def test_a_paper_that_judges_at_another_radius_is_compared_at_that_radius(client: TestClient, db: Engine) -> None:
    name = "trades-awp-cifar10-wrn-34-10-l2"  # trained at 128/255, judged at 0.5 by RobustBench
    training = submit(client, name)
    run(db, training)
    for eps in ("128/255", 0.5):
        asked = {"model.job": training, "threat.norm": "L2", "threat.eps": eps}
        run(db, submit(client, "autoattack-cifar10-l2", **asked), judged(robust_accuracy=0.7))
    published = RECIPES[name].published
    assert published is not None

    def said(eps: float) -> list[float | None]:
        query = {"dataset": "cifar10", "threat_model": "L2", "eps": eps}
        found = client.get("/api/v1/leaderboard", params=query).json()["rows"]
        return [row["published_accuracy"] for row in found if row["source"] == "measured"]

    assert said(128 / 255) == [None]
    assert said(0.5) == [published.robust_accuracy]
    ranked = client.get(
        "/api/v1/leaderboard", params={"dataset": "cifar10", "threat_model": "L2", "eps": 0.5}
    ).json()
    assert name in [row["recipe"] for row in ranked["rows"] if row["source"] == "published"]


# --- files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["evidence", "checkpoint"])
def test_a_jobs_files_are_downloaded_as_they_were_stored(
    client: TestClient, db: Engine, settings: Settings, tmp_path: Path, kind: str
) -> None:
    content = bytes(range(256)) * 300
    (tmp_path / "file").write_bytes(content)
    sha256 = store_for(settings).put(tmp_path / "file")
    job_id = judge(client, db, 0.5, **{f"{kind}_sha256": sha256})
    answer = client.get(f"/api/v1/jobs/{job_id}/{kind}")
    assert answer.content == content
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == f'attachment; filename="{job_id}-{kind}.safetensors"'
    assert answer.headers["etag"] == f'"{hashlib.sha256(content).hexdigest()}"'
    digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
    assert answer.headers["repr-digest"] == f"sha-256=:{digest}:"
    rest = client.get(f"/api/v1/jobs/{job_id}/{kind}", headers={"Range": "bytes=70000-"})
    assert (rest.status_code, rest.content) == (206, content[70000:])


def test_where_there_is_no_file_a_sentence_says_why(client: TestClient, db: Engine) -> None:
    def refusal(job_id: str, kind: str) -> str:
        answer = client.get(f"/api/v1/jobs/{job_id}/{kind}")
        assert answer.status_code == 404
        return answer.json()["detail"]

    training = submit(client)
    assert "is queued; its checkpoint is there when it has succeeded" in refusal(training, "checkpoint")
    assert "trains a model; evidence is what evaluations under attack leave" in refusal(training, "evidence")
    client.post(f"/api/v1/jobs/{training}/cancel")
    assert "has been canceled and left no checkpoint" in refusal(training, "checkpoint")
    lost = judge(client, db, 0.5)
    assert f"no longer stored here; its sha256 is {'e' * 64}" in refusal(lost, "evidence")
    corrupting = submit(client, "corruptions-cifar10", **{"model.timm": "resnet18.a1_in1k"})
    assert "measures corruptions; evidence is what" in refusal(corrupting, "evidence")
    public = submit(client, "autoattack-cifar10-linf", **{"model.timm": "resnet18.a1_in1k"})
    run(db, public, JUDGED)
    assert "judged resnet18.a1_in1k, whose weights are not kept here" in refusal(public, "checkpoint")
    assert "there is no job" in refusal("0" * 12, "evidence")


# --- the leaderboard --------------------------------------------------------------------------------------


def test_only_whole_evaluations_are_ranked_and_say_what_was_done(client: TestClient, db: Engine) -> None:
    screen = judge(client, db, 0.9, {"policy": "screen"}, protocol="screen")
    stopped = judge(client, db, 0.8, {"stop_below": 0.85}, stopped_early=True)
    assert client.get("/api/v1/leaderboard", params={"dataset": "digits"}).json()["board"] is None
    judge(client, db, 0.7, {"policy": "audited"}, protocol="AutoAttack standard, audited")
    judge(client, db, 0.6, {"engine": "pyautoattack"}, engine="pyautoattack 0.2.0")
    judge(client, db, 0.5, {"suite": [{"kind": "square"}], "stop_below": 0.4}, protocol="custom")
    assert [(row["suite"], row["policy"], row["engine"]) for row in board(client)] == [
        ("AutoAttack standard, audited", "audited", "dkl-bench 0.1.0"),
        ("AutoAttack standard, by pyautoattack", "exact", "pyautoattack 0.2.0"),
        ("custom", "exact", "dkl-bench 0.1.0"),
    ]
    assert "Not ranked: a screen is an estimate." in client.get(f"/jobs/{screen}").text
    assert "Not ranked: it stopped early" in client.get(f"/jobs/{stopped}").text
    published = client.get("/api/v1/leaderboard", params={"dataset": "cifar100"}).json()["rows"][0]
    assert (published["suite"], published["policy"], published["engine"]) == ("AutoAttack standard", None, None)


def test_results_of_before_policies_are_still_shown(client: TestClient, db: Engine) -> None:
    job_id = judge(client, db, 0.5)
    now = client.get(f"/api/v1/jobs/{job_id}").json()
    of_old = (
        "images",
        "clean_accuracy",
        "robust_accuracy",
        "robust_interval",
        "class_robust_accuracy",
        "rejected",
    )
    result = {name: now["result"][name] for name in (*of_old, "warnings", "checkpoint_sha256", "architecture")}
    result |= {"kind": "evaluate", "engine": "pyautoattack 0.2.0", "seconds": 2.0}
    result["stages"] = [
        {"name": "clean", "accuracy": 1.0, "seconds": 1.0},
        {"name": "square", "accuracy": 0.5, "seconds": 1.0},
    ]
    recipe = {
        k: v for k, v in now["recipe"].items() if k not in {"policy", "engine", "curve", "sample", "stop_below"}
    }
    with writing(db) as session:
        session.execute(update(Job).where(Job.id == job_id).values(result=result, recipe=recipe))
    page = client.get(f"/jobs/{job_id}")
    assert page.status_code == 200
    assert "AutoAttack standard, by pyautoattack" in page.text
    assert [row["suite"] for row in board(client)] == ["AutoAttack standard, by pyautoattack"]
    assert "older than this service" in client.get(f"/api/v1/jobs/{job_id}/evidence").json()["detail"]


@pytest.mark.parametrize(("k", "below"), [(1, 0.7), (2, 0.6), (3, 0.6), (4, None)])
def test_top_k_stops_below_the_kth_row_of_the_board(
    client: TestClient, db: Engine, k: int, below: float | None
) -> None:
    for robust in (0.7, 0.6, 0.6):
        judge(client, db, robust)
    screened = judge(client, db, 0.99, {"policy": "screen"})  # not on the board
    training = client.get(f"/api/v1/jobs/{screened}").json()["parent_id"]
    asked = {"name": "autoattack-digits-linf", "overrides": {"model.job": training}, "top_k": k}
    recipe = client.post("/api/v1/jobs", json=asked).json()["recipe"]
    assert recipe["stop_below"] == below
    elsewhere = {**asked, "overrides": {"model.job": training, "threat.eps": 0.1}, "top_k": 1}
    assert client.post("/api/v1/jobs", json=elsewhere).json()["recipe"]["stop_below"] is None


def test_top_k_counts_published_rows(client: TestClient) -> None:
    source = {"model.zoo": "cifar10/Linf/Carmon2019Unlabeled"}
    asked = {"name": "autoattack-cifar10-linf", "overrides": source, "top_k": 1}
    assert client.post("/api/v1/jobs", json=asked).json()["recipe"]["stop_below"] == 0.7371


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


def test_boards_are_full_before_anything_was_measured(client: TestClient) -> None:
    found = client.get("/api/v1/leaderboard", params={"dataset": "cifar100", "limit": 1000}).json()
    assert found["board"]["title"] == "CIFAR-100, Linf, eps 8/255"
    by_recipe = {row["recipe"]: row for row in found["rows"] if row["recipe"]}
    assert (
        by_recipe["ikl-at-cifar100-wrn-34-10"]["entry"] == "robustbench-cifar100-Linf-Cui2023Decoupled_WRN-34-10"
    )
    for name, row in by_recipe.items():
        numbers = [
            published.robust_accuracy for published in (RECIPES[name].published, *RECIPES[name].also) if published
        ]
        assert row["robust_accuracy"] in numbers
    assert {row["source"] for row in found["rows"]} == {"published"}
    order = [row["best_known_accuracy"] for row in found["rows"]]
    assert order == sorted(order, reverse=True)


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
    "an unknown kind": (
        {"recipe": {"kind": "tune"}},
        "kind must be 'train', 'distill', 'import', 'evaluate', 'corruptions', found 'tune'",
    ),
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
    "an evaluation that would run code": (
        {"name": "autoattack-digits-linf", "overrides": {"model.function": "os:getcwd"}},
        "model.function: a service runs no code of its users; judge os:getcwd on your own machine with: "
        "dklbench run RECIPE --model os:getcwd",
    ),
    "an unknown zoo model": (
        {"name": "autoattack-cifar10-linf", "overrides": {"model.zoo": "cifar10/Linf/Wang2023Better"}},
        "model.zoo: unknown zoo model 'cifar10/Linf/Wang2023Better'; did you mean cifar10/Linf/Wang2023Better_WRN",
    ),
    "a zoo model of other classes": (
        {"name": "autoattack-cifar100-linf", "overrides": {"model.zoo": "cifar10/Linf/Carmon2019Unlabeled"}},
        "cifar100 has 100 classes, the zoo model cifar10/Linf/Carmon2019Unlabeled tells 10 apart",
    ),
    "pixels that are not in [0, 1]": (
        {
            "name": "autoattack-digits-linf",
            "overrides": {"model": {"job": "0" * 12, "preprocessing": {"mean": [125.3], "std": [63.0]}}},
        },
        "model.preprocessing: mean [125.3] is not of pixels in [0, 1]; divide mean and std by 255",
    ),
    "an unknown suite": (
        {"name": "autoattack-digits-linf", "overrides": {"model.job": "0" * 12, "suite": "fast"}},
        "suite: must be 'standard', 'plus' or 'rand', found 'fast'",
    ),
    "an unknown attack": (
        {"name": "autoattack-digits-linf", "overrides": {"model.job": "0" * 12, "suite": [{"kind": "fgsm"}]}},
        "found 'fgsm'",
    ),
    "the top of training": ({"name": "ikl-at-digits", "top_k": 3}, "top_k: training is not ranked"),
    "two limits": (
        {"name": "autoattack-digits-linf", "overrides": {"model.job": "0" * 12, "stop_below": 0.5}, "top_k": 1},
        "top_k: the recipe has stop_below 0.5 already; give one of the two",
    ),
    "the top 0": ({"name": "autoattack-digits-linf", "top_k": 0}, "top_k: must be greater than or equal to 1"),
    "an empty suite": (
        {"name": "autoattack-digits-linf", "overrides": {"model.job": "0" * 12, "suite": []}},
        "suite: a suite has 1 to 100 attacks, found 0",
    ),
    "a list": ([1], "must be a JSON object"),
    "a name that is no string": ({"name": 3}, "name: must be a valid string, found 3"),
}


@pytest.mark.parametrize(
    ("source", "name"), [("zoo", "cifar10/Linf/Carmon2019Unlabeled"), ("timm", "resnet18.a1_in1k")]
)
def test_a_public_model_is_accepted_and_shown(client: TestClient, source: str, name: str) -> None:
    body = {"name": "autoattack-cifar10-linf", "overrides": {f"model.{source}": name}}
    accepted = client.post("/api/v1/jobs", json=body)
    assert accepted.status_code == 201
    assert accepted.json()["recipe"]["model"] == {source: name}
    assert f"Judges {name} on" in client.get(f"/jobs/{accepted.json()['id']}").text


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
        ("GET", "/api/v1/jobs/000000000000/checkpoint", 404),
        ("GET", "/api/v1/jobs?limit=0", 422),
        ("GET", "/api/v1/jobs?status=lost", 422),
        ("GET", "/api/v1/leaderboard?eps=nan", 422),
        ("GET", "/api/v1/leaderboard?threat_model=L7", 422),
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
    assert set(recipe["discriminator"]["mapping"]) == {"train", "distill", "import", "evaluate", "corruptions"}
    assert schemas["ThreatModel"]["properties"]["eps"]["description"].startswith("Radius of the ball")
