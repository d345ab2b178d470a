"""The page of a training whose attack strategies are learnt: its charts, and those as files."""

from collections.abc import Iterator

import pytest
from samples import EPOCH
from sqlalchemy import Engine
from starlette.testclient import TestClient

from dkl.catalog import resolve
from dkl.events import ChoiceShares, Epoch, StrategyEpoch
from service import claims, jobs
from service.app import create_app
from service.settings import Settings

HTML = {"Accept": "text/html"}


@pytest.fixture
def client(db: Engine, database_url: str, settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings.model_copy(update={"database_url": database_url}))) as client:
        yield client


def epoch(number: int) -> Epoch:
    choices = (
        ChoiceShares(name="eps", values=(0.1, 0.2, 0.3), shares=(0.5, 0.25, 0.25), mean=0.175),
        ChoiceShares(name="steps", values=(2, 6), shares=(0.25, 0.75), mean=5.0),
        ChoiceShares(name="step_size", values=(0.05,), shares=(1.0,), mean=0.05),
    )
    rewards = {"loss": 1.5, "robust": 0.25, "clean": 0.75, "total": 4.0} if number != 2 else {}
    strategy = StrategyEpoch(choices=choices, entropy=1.25, rewards=rewards, updates=len(rewards))
    return EPOCH.model_copy(update={"epoch": number, "eps": 0.2, "strategy": strategy})


def test_strategies_are_drawn_as_soon_as_an_epoch_has_ended(client: TestClient, db: Engine) -> None:
    job_id = jobs.create(db, resolve("las-at-digits", {})).id
    before = client.get(f"/jobs/{job_id}", headers=HTML).text
    assert 'id="strategy"' in before  # what is replaced later has to be there
    assert client.get(f"/jobs/{job_id}/curves.svg?of=reward").status_code == 404

    claim = claims.claim(db, job_id, worker="w", lease_seconds=60)
    assert claim is not None
    for number in (1, 2, 3):
        claims.append(db, claim, epoch(number))
    page = client.get(f"/jobs/{job_id}", headers=HTML).text
    titles = [
        *("Reward of the strategies by epoch", "Entropy of the strategies by epoch"),
        *("Means of what was drawn by epoch", "eps: how often each value was drawn"),
        *("steps: how often each value was drawn", "step size: how often each value was drawn"),
    ]
    for title in titles:
        assert f"<b>{title}</b>" in page
    assert "beta: how often" not in page
    for of in ("reward", "entropy", "means", "eps-drawn", "steps-drawn", "step_size-drawn"):
        assert f'href="/jobs/{job_id}/curves.svg?of={of}"' in page
        answer = client.get(f"/jobs/{job_id}/curves.svg", params={"of": of})
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/svg+xml"), of
    assert client.get(f"/jobs/{job_id}/curves.svg?of=beta-drawn", headers=HTML).status_code == 404
    # the numbers: the rewards of epoch 3, the mean eps at 37.5 % of its range, a share
    assert '<th scope="row" class="n">3</th><td class="n">4</td><td class="n">1.5</td>' in page
    assert "37.50 %" in page
    assert '<th scope="row" class="n">6</th><td class="n">75.00 %</td>' in page


def test_other_trainings_have_no_strategies(client: TestClient, db: Engine) -> None:
    job_id = jobs.create(db, resolve("pgd-at-digits", {})).id
    claim = claims.claim(db, job_id, worker="w", lease_seconds=60)
    assert claim is not None
    claims.append(db, claim, EPOCH)
    assert 'id="strategy"' not in client.get(f"/jobs/{job_id}", headers=HTML).text
    assert client.get(f"/jobs/{job_id}/curves.svg?of=reward").status_code == 404


def test_the_events_come_back_over_rest(client: TestClient, db: Engine) -> None:
    job_id = jobs.create(db, resolve("las-at-digits", {})).id
    claim = claims.claim(db, job_id, worker="w", lease_seconds=60)
    assert claim is not None
    claims.append(db, claim, epoch(1))
    [payload] = [event.payload for event in jobs.events(db, job_id) if event.kind == "epoch"]
    assert Epoch.model_validate(payload) == epoch(1)
