"""A whole installation with something of everything in it, and what its pages and its interface say of that."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exhibits import Shown, judged
from pydantic import SecretStr
from samples import EPOCH, PROGRESS, STARTED, TRAIN, TRAINED
from sqlalchemy import Engine, MetaData, select
from starlette.testclient import TestClient

from dkl.catalog import resolve
from dkl.events import Finished
from service import claims, files, jobs, keys, uploads, verifications
from service.app import create_app
from service.artifacts import Store, store_for
from service.callers import COMMAND_LINE, Caller
from service.db import clock, connect, migrate, writing
from service.settings import Settings
from service.tables import Delivery, ReportedRow
from service.verifications import VerificationRequest

_CHANGES_BY_ITSELF = re.compile(r'"If-None-Match": "[^ ]*"|\d+ (?:s|min|h) ago|just now')


@dataclass(frozen=True)
class Installation:
    settings: Settings
    db: Engine
    store: Store

    @classmethod
    def at(cls, settings: Settings, *, migrated: bool = True) -> "Installation":
        db = connect(settings.database)
        if migrated:
            migrate(db)
        return cls(settings, db, store_for(settings))

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """Every row of every table, in the order of their keys."""
        metadata = MetaData()
        metadata.reflect(self.db)
        with self.db.connect() as connection:
            return {
                name: [
                    dict(row) for row in connection.execute(select(table).order_by(*table.primary_key)).mappings()
                ]
                for name, table in metadata.tables.items()
            }


@dataclass(frozen=True)
class Contents:
    """What `furnish` put into an installation."""

    key: str
    """An API key, as its owner has it."""
    ended: tuple[str, ...]
    """Jobs that had succeeded, failed or been canceled."""
    entries: tuple[str, ...]
    """Evaluations that the leaderboard shows."""
    training: str
    judging: str
    cancelling: str
    waiting: str
    children: tuple[str, ...]


def furnish(here: Installation, folder: Path) -> Contents:
    """Jobs in every state with their files, keys, webhooks, uploads, a verification and an imported row."""
    db, store = here.db, here.store
    row, key = keys.create(
        db, here.settings, keys.KeyRequest(name="anna", scope="admin", max_running=9), caller=COMMAND_LINE
    )
    anna = Caller(f"anna ({row.id})", "submit", row.id)
    trained = _trained(here, folder, anna)
    entries = tuple(
        judged(db, store, folder, Shown(robust=robust), overrides={"model.job": trained, "seed": robust}).id
        for robust in (20, 26)
    )
    verifications.record(db, entries[0], _verified(db, entries[0]), caller=anna)
    failed = jobs.create(db, TRAIN.model_copy(update={"seed": 3}), name="natural-digits", caller=anna)
    claims.fail(db, _claim(db, failed.id), "the loss is not finite; lower the learning rate")
    training = jobs.create(db, TRAIN.model_copy(update={"seed": 4}), name="natural-digits", caller=anna)
    claim = _claim(db, training.id)
    claims.append(db, claim, STARTED, EPOCH, PROGRESS)
    child = jobs.create(db, resolve("autoattack-digits-linf", {"model.job": training.id}), caller=anna)
    weights = str((jobs.get(db, trained).result or {})["checkpoint_sha256"])
    judging = jobs.create(db, resolve("autoattack-digits-linf", {"model.checkpoint": weights}), caller=anna)
    claim = _claim(db, judging.id)
    claims.announce(db, claim, [(0, 0), (0, 1), (0, 2)])
    assert claims.take_chunk(db, claim, [(0, 0), (0, 1), (0, 2)]) == (0, 0)
    found = files.keep(db, store, _file(folder, b"verdicts of a chunk"), key_id=row.id)
    claims.chunk_done(db, claim, (0, 0), found_sha256=found)
    assert claims.take_chunk(db, claim, [(0, 1), (0, 2)]) == (0, 1)
    cancelling = jobs.create(db, TRAIN.model_copy(update={"seed": 5}), caller=anna)
    _claim(db, cancelling.id)
    jobs.cancel(db, cancelling.id, caller=anna)
    canceled = jobs.create(db, TRAIN.model_copy(update={"seed": 6}), caller=anna)
    jobs.cancel(db, canceled.id, caller=anna)
    waiting = jobs.rerun(db, canceled.id, caller=anna)
    _uploads(here, folder, anna)
    _rest(db, trained, failed.id)
    ended = (trained, *entries, failed.id, canceled.id)
    return Contents(key, ended, entries, training.id, judging.id, cancelling.id, waiting.id, (child.id,))


def seen(here: Installation, contents: Contents) -> dict[str, Any]:
    """What somebody with the key sees of what had ended; without what the clock alone changes."""
    app = create_app(here.settings)
    headers = {"Authorization": f"Bearer {contents.key}"}
    found: dict[str, Any] = {}
    with TestClient(app, headers=headers) as client:
        for path in ("/", "/?dataset=digits", "/?dataset=cifar10", "/distillation"):
            found[path] = _page(client, path)
        for path in (
            "/api/v1/leaderboard?dataset=digits",
            "/api/v1/keys",
            "/api/v1/storage",
            "/api/v1/webhooks/secret",
        ):
            answer = client.get(path)
            assert answer.status_code == 200, (path, answer.text)
            found[path] = answer.json()
            if isinstance(found[path], dict):
                found[path].pop("free_disk", None)
        for job_id in contents.ended:
            found[f"page {job_id}"] = _page(client, f"/jobs/{job_id}")
            found[f"job {job_id}"] = client.get(f"/api/v1/jobs/{job_id}").json()
            found[f"events {job_id}"] = client.get(f"/api/v1/jobs/{job_id}/events").text
        for job_id in contents.entries:
            found[f"entry {job_id}"] = _page(client, f"/entries/{job_id}")
            evidence = client.get(f"/api/v1/jobs/{job_id}/evidence")
            assert evidence.status_code == 200, evidence.text
            found[f"evidence {job_id}"] = hashlib.sha256(evidence.content).hexdigest()
        checkpoint = client.get(f"/api/v1/jobs/{contents.ended[0]}/checkpoint")
        found["checkpoint"] = hashlib.sha256(checkpoint.content).hexdigest()
        assert checkpoint.status_code == 200
    app.state.dkl.db.dispose()
    return found


def with_secret(settings: Settings, secret: str = "s" * 64) -> Settings:
    return settings.model_copy(update={"secret_key": SecretStr(secret)})


def _page(client: TestClient, path: str) -> str:
    answer = client.get(path, headers={"Accept": "text/html"})
    assert answer.status_code == 200, (path, answer.text)
    return _CHANGES_BY_ITSELF.sub("", answer.text)


def _trained(here: Installation, folder: Path, caller: Caller) -> str:
    job = jobs.create(here.db, TRAIN, name="natural-digits", caller=caller)
    claim = _claim(here.db, job.id)
    claims.append(here.db, claim, STARTED, EPOCH)
    sha256 = files.keep(here.db, here.store, _file(folder, b"weights" * 50_000), key_id=caller.key_id)
    result = TRAINED.result.model_copy(update={"checkpoint_sha256": sha256})
    claims.finish(here.db, claim, Finished(result=result))
    return job.id


def _claim(db: Engine, job_id: str) -> claims.Claim:
    claim = claims.claim(db, job_id, worker="gpu-box:7", lease_seconds=3600)
    assert claim is not None
    return claim


def _file(folder: Path, content: bytes) -> Path:
    path = folder / "to be stored"
    path.write_bytes(content)
    return path


def _verified(db: Engine, job_id: str) -> VerificationRequest:
    result = jobs.get(db, job_id).result
    assert result is not None
    return VerificationRequest(
        evidence_sha256=result["evidence_sha256"],
        images=40,
        adversarial=16,
        faults=0,
        sentences=[],
        device="a processor",
        versions={"torch": "2.11.0"},
    )


def _uploads(here: Installation, folder: Path, caller: Caller) -> None:
    """A finished one, and one of which nothing has arrived."""
    content = b"uploaded"
    sha256 = hashlib.sha256(content).hexdigest()
    about: dict[str, Any] = {"name": "mine.safetensors", "size": len(content), "caller": caller}
    begun = uploads.begin(here.db, here.store, here.settings, sha256=sha256, **about)
    path = uploads.path_of(here.settings, begun.id)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    uploads._complete(here.db, here.store, here.settings, begun, caller)
    uploads.begin(here.db, here.store, here.settings, sha256="f" * 64, **about)


def _rest(db: Engine, delivered: str, due: str) -> None:
    document = {
        "dataset": "cifar10", "threat_model": "Linf", "key": "Nobody2024", "name": "A defence",
        "venue": "none", "architecture": "WideResNet-28-10", "clean_acc": "93.25", "autoattack_acc": "70.69",
        "eps": "8/255", "link": "https://arxiv.org/abs/2302.04638",
    }  # fmt: skip
    with writing(db) as session:
        at = clock(session)
        url = "https://hooks.example.org/dkl"
        session.add(Delivery(id="0" * 32, job_id=delivered, url=url, tries=1, delivered_at=at, created_at=at))
        session.add(
            Delivery(id="1" * 32, job_id=due, url=url, tries=1, due_at=at + 60, created_at=at, error="500")
        )
        session.add(ReportedRow(entry="cifar10-Linf-Nobody", document=document, added_at=at, added_by="anna"))
