"""What an older service stored is shown without an error, and as it was said."""

from collections.abc import Iterator
from typing import Any

import pytest
from samples import EPOCH, TRAIN, TRAINED
from sqlalchemy import Engine, select, update
from starlette.testclient import TestClient

from service import claims, jobs
from service.app import create_app
from service.db import writing
from service.settings import Settings
from service.tables import Job, JobEvent

NEW_OF_EPOCH = ("terms", "validation_accuracy", "validation_robust_accuracy", "images_per_second", "eta_seconds")
NEW_OF_RESULT = ("selected_epoch", "validation_accuracy", "validation_robust_accuracy", "notes", "provenance")


@pytest.fixture
def client(db: Engine, database_url: str, settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings.model_copy(update={"database_url": database_url}))) as client:
        yield client


def without(document: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in names}


@pytest.fixture
def old_job(db: Engine) -> Job:
    """A training that succeeded before epochs and results said as much as today."""
    job = jobs.create(db, TRAIN, name="natural-digits")
    claim = claims.claim(db, job.id, worker="w", lease_seconds=60)
    assert claim is not None
    claims.append(db, claim, EPOCH)
    claims.finish(db, claim, TRAINED)
    with writing(db) as session:
        result = without(TRAINED.result.model_dump(mode="json"), NEW_OF_RESULT)
        session.execute(update(Job).where(Job.id == job.id).values(result=result))
        for event in session.scalars(select(JobEvent).where(JobEvent.job_id == job.id)):
            if event.kind == "epoch":
                event.payload = without(event.payload, NEW_OF_EPOCH)
            elif event.kind == "finished":
                event.payload = {"result": result}
    return job


def page(client: TestClient, path: str) -> str:
    answer = client.get(path, headers={"Accept": "text/html"})
    assert answer.status_code == 200, answer.text
    return answer.text


def test_an_old_training_has_its_page(client: TestClient, old_job: Job) -> None:
    text = page(client, f"/jobs/{old_job.id}")
    assert "95.00" in text
    assert "0.5000" in text
    assert "Git commit" not in text
    assert "weights of epoch" not in text
    assert "natural-digits" in page(client, "/jobs")
    assert client.get(f"/api/v1/jobs/{old_job.id}").json()["result"]["clean_accuracy"] == 0.95
    assert "event: epoch" in client.get(f"/api/v1/jobs/{old_job.id}/events").text


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ({"kind": "wide-resnet", "depth": 28, "width": 10, "activation": "silu"}, "Trains wide-resnet on"),
        ({"kind": "perceptron"}, "Trains perceptron on"),
        ({}, "Trains a network on"),
    ],
)
def test_a_document_that_todays_recipes_do_not_know_is_shown_as_it_is(
    client: TestClient, db: Engine, old_job: Job, model: dict[str, Any], shown: str
) -> None:
    recipe = {**TRAIN.model_dump(mode="json"), "model": model, "ema_decay": 0.9, "augmentation": "none"}
    with writing(db) as session:
        session.execute(update(Job).where(Job.id == old_job.id).values(recipe=recipe))
    text = page(client, f"/jobs/{old_job.id}")
    assert shown in text
    assert "ema_decay" in text
    assert client.get(f"/api/v1/jobs/{old_job.id}").json()["recipe"] == recipe
    page(client, "/jobs")
