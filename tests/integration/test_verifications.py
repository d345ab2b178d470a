"""What people report about evidence: kept under their name, listed, and refused where it cannot be true."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from samples import JUDGED, TRAINED
from sqlalchemy import Engine
from starlette.testclient import TestClient

from dkl import reverify
from dkl.catalog import resolve
from dkl.events import Finished
from service import audit, claims, jobs, keys, verifications
from service.app import create_app
from service.callers import COMMAND_LINE
from service.keys import KeyRequest
from service.settings import Settings

EVIDENCE = "e" * 64
PROVED = {
    "evidence_sha256": EVIDENCE,
    "images": 2,
    "adversarial": 1,
    "faults": 0,
    "device": "NVIDIA H200",
    "versions": {"torch": "2.11.0", "dkl-bench": "0.1.0"},
}


@dataclass
class Ledger:
    db: Engine
    app: Any
    settings: Settings
    training: str
    evaluation: str

    def client(self, scope: str | None = None, name: str = "anna") -> TestClient:
        headers = {}
        if scope is not None:
            wanted = KeyRequest(name=name, scope=scope)  # type: ignore[arg-type]
            text = keys.create(self.db, self.settings, wanted, caller=COMMAND_LINE)[1]
            headers["Authorization"] = f"Bearer {text}"
        return TestClient(self.app, headers=headers)

    def path(self, job_id: str | None = None) -> str:
        return f"/api/v1/jobs/{job_id or self.evaluation}/verifications"

    def actions(self) -> list[str]:
        return [entry.action for entry in audit.recent(self.db)]


@pytest.fixture
def ledger(settings: Settings, db: Engine, database_url: str) -> Iterator[Ledger]:
    """Once in SQLite and once in PostgreSQL: a training and an evaluation of its model, which have ended."""
    own = settings.model_copy(update={"database_url": database_url, "anonymous": "leaderboard"})
    training = ended(db, "natural-digits", {}, TRAINED)
    evaluation = ended(db, "autoattack-digits-linf", {"model.job": training}, JUDGED)
    app = create_app(own)
    yield Ledger(db, app, own, training, evaluation)
    app.state.dkl.db.dispose()


def ended(db: Engine, name: str, overrides: dict[str, Any], finished: Finished) -> str:
    job = jobs.create(db, resolve(name, overrides), name=name)
    claim = claims.claim(db, job.id, worker="w", lease_seconds=60)
    assert claim is not None
    claims.finish(db, claim, finished)
    return job.id


def test_a_report_is_kept_under_its_author_s_name(ledger: Ledger) -> None:
    anna = ledger.client("submit")
    answer = anna.post(ledger.path(), json=PROVED)
    assert answer.status_code == 201, answer.text
    view = answer.json()
    assert {name: view[name] for name in PROVED} == PROVED
    assert view["sentences"] == []
    assert view["job_id"] == ledger.evaluation
    assert view["actor"].startswith("anna (")
    [entry] = [entry for entry in audit.recent(ledger.db) if entry.action == "evidence.verify"]
    assert (entry.actor, entry.object) == (view["actor"], ledger.evaluation)
    assert entry.detail == {"evidence_sha256": EVIDENCE, "faults": 0, "device": "NVIDIA H200"}
    assert abs(view["at"] - entry.at) < 1


def test_reports_are_listed_newest_first(ledger: Ledger) -> None:
    reader = ledger.client("read", "bert")
    assert reader.get(ledger.path()).json() == []
    assert verifications.latest(ledger.db, ledger.evaluation) is None
    anna = ledger.client("submit")
    lie = PROVED | {"faults": 12, "sentences": [f"image {i} is classified wrongly" for i in range(10)]}
    posted = [anna.post(ledger.path(), json=body).json() for body in (PROVED, lie)]
    assert reader.get(ledger.path()).json() == [posted[1], posted[0]]
    assert [row.id for row in verifications.of_job(ledger.db, ledger.evaluation)] == [
        row["id"] for row in posted[::-1]
    ]
    newest = verifications.latest(ledger.db, ledger.evaluation)
    assert newest is not None
    assert (newest.faults, newest.sentences) == (12, lie["sentences"])
    assert reader.get(ledger.path(ledger.training)).json() == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"evidence_sha256": "f" * 64}, "evidence_sha256: the evidence of job"),
        ({"evidence_sha256": "E" * 64}, "evidence_sha256"),
        ({"images": 3}, "is about 2 images"),
        ({"images": 0}, "images"),
        ({"adversarial": 3}, "found 2 images and 3 adversarial ones"),
        ({"faults": 1}, "1 faults are told in 1 sentences, found 0"),
        ({"sentences": ["a"]}, "0 faults are told in 0 sentences, found 1"),
        ({"faults": 11, "sentences": ["a"] * 11}, "sentences"),
        ({"faults": 1, "sentences": ["a" * 301]}, "sentences"),
        ({"faults": 1, "sentences": ["two\nlines"]}, "sentences"),
        ({"faults": 2**31}, "faults"),
        ({"device": ""}, "device"),
        ({"device": "nul\x00"}, "device"),
        ({"device": "\ud800"}, "device"),
        ({"versions": {str(i): "1" for i in range(21)}}, "versions"),
        ({"versions": {"torch\x00": "1"}}, "versions"),
        ({"actor": "somebody else"}, "actor"),
    ],
)
def test_what_cannot_be_about_the_evidence_is_refused(
    ledger: Ledger, changes: dict[str, Any], sentence: str
) -> None:
    body = json.dumps(PROVED | changes)  # escaped: half a character cannot be sent otherwise
    answer = ledger.client("submit").post(
        ledger.path(), content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422
    assert sentence in answer.json()["detail"]
    assert verifications.latest(ledger.db, ledger.evaluation) is None
    assert "evidence.verify" not in ledger.actions()


def test_only_an_evaluation_that_has_succeeded_has_evidence(ledger: Ledger) -> None:
    anna = ledger.client("submit")
    waiting = jobs.create(ledger.db, resolve("autoattack-digits-linf", {"model.job": ledger.training}))
    for job_id in (ledger.training, waiting.id):
        answer = anna.post(ledger.path(job_id), json=PROVED)
        assert answer.status_code == 409
        assert answer.json()["detail"].startswith(f"job {job_id} has left no evidence")
    for absent in ("0123456789ab", "natural-digits"):
        assert anna.post(ledger.path(absent), json=PROVED).status_code == 404
        assert anna.get(ledger.path(absent)).status_code == 404


def test_who_may_report_and_who_may_read(ledger: Ledger) -> None:
    for scope, may_read, may_report in (
        (None, 401, 401),
        ("read", 200, 403),
        ("submit", 200, 201),
        ("admin", 200, 201),
    ):
        client = ledger.client(scope)
        assert client.get(ledger.path()).status_code == may_read
        assert client.post(ledger.path(), json=PROVED).status_code == may_report
    assert len(verifications.of_job(ledger.db, ledger.evaluation)) == 2


def test_no_more_sentences_than_a_check_tells() -> None:
    assert verifications.SENTENCES == reverify.SENTENCES
