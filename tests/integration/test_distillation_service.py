"""Distillations through the service: what is accepted, refused and shown, and real workers that distil."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from processes import BIN, Start, ends, in_epoch, wait_until
from samples import DISTILLED, EPOCH, TRAINED, distillation
from sqlalchemy import Engine
from starlette.testclient import TestClient

from dkl.events import Finished
from dkl.protocols import Checkpoint
from service import claims
from service.app import create_app
from service.artifacts import store_for
from service.settings import Settings

SHORT = {"epochs": 2, "images": 256}
LONGER = {"epochs": 40, "objective.warmup": 3}  # time to be killed in


@pytest.fixture
def client(db: Engine, database_url: str, settings: Settings) -> Iterator[TestClient]:
    app = create_app(settings.model_copy(update={"database_url": database_url}))
    with TestClient(app) as client:
        yield client


def submit(client: TestClient, name: str, *then: dict, **overrides: object) -> dict:
    answer = client.post("/api/v1/jobs", json={"name": name, "overrides": overrides, "then": list(then)})
    assert answer.status_code == 201, answer.text
    return answer.json()


def refusal(client: TestClient, body: dict) -> str:
    answer = client.post("/api/v1/jobs", json=body)
    assert answer.status_code == 422, answer.text
    return answer.json()["detail"]


def run(db: Engine, job_id: str, finished: Finished) -> None:
    """What a worker would do, without the work."""
    claim = claims.claim(db, job_id, worker="w", lease_seconds=60)
    assert claim is not None
    claims.append(db, claim, EPOCH)
    claims.finish(db, claim, finished)


def stored(settings: Settings, folder: Path, content: bytes) -> str:
    (folder / "file").write_bytes(content)
    return store_for(settings).put(folder / "file")


def left(finished: Finished, **changes: object) -> Finished:
    return Finished(result=finished.result.model_copy(update=changes))


# --- asking -----------------------------------------------------------------------------------------------


def test_teacher_and_student_are_submitted_in_one_go(client: TestClient, db: Engine) -> None:
    teacher = submit(client, "natural-digits", {"name": "kd-digits"}, {"name": "autoattack-digits-linf"})
    student, evaluation = teacher["then"]
    assert (student["kind"], student["parent_id"]) == ("distill", teacher["id"])
    assert student["recipe"]["teacher"]["job"] == evaluation["recipe"]["model"]["job"] == teacher["id"]
    follows = submit(client, "autoattack-digits-linf", **{"model.job": student["id"]})
    assert follows["parent_id"] == student["id"]
    assert client.post(f"/api/v1/jobs/{teacher['id']}/cancel").status_code == 200
    assert client.get(f"/api/v1/jobs/{student['id']}").json()["status"] == "failed"
    assert f"it waited for job {student['id']}" in client.get(f"/api/v1/jobs/{follows['id']}").json()["reason"]


def test_a_student_is_distilled_again_and_judged_in_one_go(client: TestClient) -> None:
    teacher = submit(client, "natural-digits")
    student = submit(
        client,
        "kd-digits",
        {"name": "kd-digits"},
        {"name": "autoattack-digits-linf"},
        **{"teacher.job": teacher["id"]},
    )
    assert [job["parent_id"] for job in student["then"]] == [student["id"]] * 2


def test_the_recipes_say_that_a_teacher_is_needed(client: TestClient) -> None:
    one = client.get("/api/v1/recipes/kd-digits").json()
    assert (one["kind"], one["needs"]) == ("distill", ["teacher"])
    assert "teacher: is missing" in refusal(client, {"name": "kd-digits"})


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"teacher.job": "0" * 12}, "teacher.job: there is no job 000000000000"),
        ({"teacher.checkpoint": "0" * 64}, "teacher.checkpoint: no checkpoint with sha256 0000"),
        ({"teacher.function": "os:getcwd"}, "teacher.function: a service runs no code of its users; learn from"),
        (
            {"teacher.zoo": "cifar10/Linf/Carmon2019Unlabeled", "dataset": "cifar100"},
            "teacher.zoo: cifar10/Linf/Carmon2019Unlabeled tells 10 classes apart; CIFAR-100 has 100 classes",
        ),
        (
            {"teacher.zoo": "cifar10/Linf/Carmon2019Unlabeled", "dataset": "cifar10", "objective.kind": "ofd"},
            "models of RobustBench's zoo offer no features to compare, which the objective 'ofd' needs",
        ),
        ({"teacher.job": "0" * 12, "dataset": "cifar100-lt@0.5"}, "the imbalance factor must be a number from 1"),
    ],
)
def test_what_cannot_teach_gets_a_sentence(client: TestClient, overrides: dict, sentence: str) -> None:
    assert sentence in refusal(client, {"name": "kd-digits", "overrides": overrides})
    assert client.get("/api/v1/jobs").json() == []


def test_a_stored_teacher_must_be_known_and_of_the_same_classes(
    client: TestClient, db: Engine, settings: Settings, tmp_path: Path
) -> None:
    sha256 = stored(settings, tmp_path, b"a teacher")
    recipe = distillation(Checkpoint(checkpoint=sha256)).model_dump(mode="json")
    assert f"no checkpoint with sha256 {sha256} is stored here" in refusal(client, {"recipe": recipe})
    run(db, submit(client, "natural-digits")["id"], left(TRAINED, checkpoint_sha256=sha256))
    assert client.post("/api/v1/jobs", json={"recipe": recipe}).status_code == 201
    why = refusal(client, {"recipe": {**recipe, "dataset": "cifar100"}})
    assert f"teacher.checkpoint: {sha256} was trained on" in why
    assert "which has 10 classes; CIFAR-100 has 100 classes" in why


def test_distilling_is_not_ranked(client: TestClient) -> None:
    body = {"name": "kd-digits", "overrides": {"teacher.job": "0" * 12}, "top_k": 3}
    assert "top_k: distilling is not ranked" in refusal(client, body)


# --- files ------------------------------------------------------------------------------------------------


def test_a_teachers_file_is_kept_while_a_student_waits_for_it(
    client: TestClient, db: Engine, settings: Settings, tmp_path: Path
) -> None:
    teacher = submit(client, "natural-digits")["id"]
    sha256 = stored(settings, tmp_path, b"a teacher")
    run(db, teacher, left(TRAINED, checkpoint_sha256=sha256))
    student = submit(client, "kd-digits", **{"teacher.job": teacher})["id"]
    kept = client.delete(f"/api/v1/jobs/{teacher}/files")
    assert kept.status_code == 409
    assert f"is needed by {student}" in kept.json()["detail"]
    run(db, student, left(DISTILLED, checkpoint_sha256=stored(settings, tmp_path, b"a student")))
    assert client.get(f"/api/v1/jobs/{student}/checkpoint").content == b"a student"
    assert "distils a model; evidence is what" in client.get(f"/api/v1/jobs/{student}/evidence").json()["detail"]
    assert client.delete(f"/api/v1/jobs/{teacher}/files").status_code == 200
    assert client.delete(f"/api/v1/jobs/{student}/files").status_code == 200


# --- pages ------------------------------------------------------------------------------------------------


def test_the_page_of_a_distillation(client: TestClient, db: Engine) -> None:
    teacher = submit(client, "natural-digits")["id"]
    student = submit(client, "kd-digits", **{"teacher.job": teacher})["id"]
    waiting = client.get(f"/jobs/{student}").text
    assert f'Distils <a href="/jobs/{teacher}">natural-digits</a> into CNN-8 with kd on' in waiting
    assert "which is queued" in waiting
    run(db, teacher, TRAINED)
    run(db, student, left(DISTILLED, many_accuracy=0.97, few_accuracy=0.41, extra_parameters=86912))
    page = client.get(f"/jobs/{student}").text
    figures = ("90.00", "95.00", "12.5 <small>ms", "Many", "97.00", "Few", "41.00", "86,912 learnt for distilling")
    assert [words for words in figures if words not in page] == []
    assert "Medium" not in page
    assert f"model.job={student}" in page  # how to judge the student
    assert 'id="curve"' in page
    assert "CNN-8: clean <b>90.00 %</b>" in client.get(f"/jobs/{teacher}").text
    listed = client.get("/jobs").text
    assert f'of <a href="/jobs/{teacher}">natural-digits</a>' in listed
    assert '<td role="cell" class="kind">distillation</td>' in listed


def test_the_papers_numbers_stand_beside_ours(client: TestClient, db: Engine) -> None:
    teacher = submit(client, "natural-cifar100-resnet56")["id"]
    student = submit(client, "kd-cifar100-resnet56-resnet20", **{"teacher.job": teacher, "epochs": 7})["id"]
    run(db, teacher, TRAINED)
    run(db, student, DISTILLED)
    page = client.get(f"/jobs/{student}").text
    for words in ("Published and here", "70.66", "72.34", "Table 13", "<code>epochs</code>"):
        assert words in page
    assert "<code>teacher.job</code>" in page
    assert "row's in <code>epochs</code>." in page
    assert "72.34" in client.get(f"/jobs/{teacher}").text


# --- real workers -----------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_chain_of_teacher_student_and_evaluation(start_embedded: Start, settings: Settings) -> None:
    _, client = start_embedded()
    teacher = client.submit("natural-digits", SHORT, then=[("kd-digits", SHORT)])
    [student] = teacher.then
    said = subprocess.run(
        [str(BIN / "dklbench"), "submit", "kd-digits", "epochs=1", f"teacher.job={student.id}",
         "--then", 'autoattack-digits-linf images=20 suite=[{"kind":"apgd-ce","steps":5}]', "--watch",
         "--url", client.url],
        env={**os.environ, **settings.as_environment()}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said.returncode == 0, said.stdout + said.stderr
    assert "distilled: " in said.stdout
    assert "teacher CNN-8: " in said.stdout
    taught, result = ends(client, teacher.id)["result"], ends(client, student.id)["result"]
    assert (result["teacher_sha256"], result["teacher"]) == (taught["checkpoint_sha256"], "CNN-32")
    assert result["teacher_accuracy"] == taught["clean_accuracy"]
    [grandchild] = [job for job in client.jobs() if job.parent_id == student.id]
    [evaluation] = [job for job in client.jobs() if job.parent_id == grandchild.id]
    assert grandchild.document["result"]["teacher_sha256"] == result["checkpoint_sha256"]
    assert evaluation.document["result"]["checkpoint_sha256"] == grandchild.document["result"]["checkpoint_sha256"]
    [row] = client.leaderboard(dataset="digits").rows
    assert (row.name, row.model_job_id) == ("kd-digits", grandchild.id)


@pytest.mark.slow
def test_a_worker_dies_in_mid_distillation_and_the_weights_are_the_same(start_embedded: Start) -> None:
    process, client = start_embedded()
    teacher = ends(client, client.submit("natural-digits", SHORT).id)["id"]
    asked = {**LONGER, "teacher.job": teacher}
    expected = ends(client, client.submit("ikl-kd-digits", asked).id)["result"]["checkpoint_sha256"]
    disturbed = client.submit("ikl-kd-digits", asked).id
    wait_until(lambda: in_epoch(client, disturbed, 4), what="epoch 4")
    [worker] = psutil.Process(process.pid).children()
    worker.send_signal(signal.SIGKILL)
    job = ends(client, disturbed)
    assert job["attempt"] == 2
    assert job["result"]["checkpoint_sha256"] == expected
    epochs = [event.data["epoch"] for event in client.job(disturbed).watch() if event.kind == "epoch"]
    assert epochs == list(range(1, LONGER["epochs"] + 1))
