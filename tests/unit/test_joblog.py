"""What a job has said, as lines of text."""

import pytest
from samples import BATCH, EPOCH, JUDGED, STARTED, TRAIN, TRAINED
from sqlalchemy import Engine

from dkl.catalog import resolve
from dkl.events import Adjusted, CorruptionDone
from service import claims, jobs
from service.callers import COMMAND_LINE
from service.web import joblog
from service.web.joblog import Said, lines, written


def start(db: Engine, job_id: str, worker: str) -> claims.Claim:
    claim = claims.claim(db, job_id, worker=worker, lease_seconds=60)
    assert claim is not None
    return claim


def told(db: Engine, job_id: str) -> list[tuple[str, str]]:
    return [(line.who, line.text) for line in lines(jobs.events(db, job_id))]


def test_a_training_from_its_submission_to_its_result(db: Engine) -> None:
    job_id = jobs.create(db, TRAIN, caller=COMMAND_LINE).id
    first = start(db, job_id, "box/a")
    claims.append(db, first, STARTED.model_copy(update={"commit": "0123456789abcdef-dirty"}))
    claims.stopped(db, first)
    second = start(db, job_id, "box/b")
    claims.append(db, second, STARTED.model_copy(update={"resumed": True, "versions": {}}))
    claims.append(db, second, Adjusted(sentence="it did not fit; 64 at a time", micro_batch=64))
    rich = {"adversarial_accuracy": 0.5, "validation_accuracy": 0.7, "validation_robust_accuracy": 0.25}
    claims.append(db, second, EPOCH.model_copy(update=rich))
    claims.finish(db, second, TRAINED)
    assert told(db, job_id) == [
        ("command line", "queued"),
        ("box/a", "running"),
        ("box/a", "begins on cpu: torch 2.11.0, commit 0123456789ab-dirty"),
        ("box/a", "queued: its worker was shut down; it will resume"),
        ("box/b", "running, attempt 2"),
        ("box/b", "resumes on cpu"),
        ("box/b", "adjusted: it did not fit; 64 at a time"),
        (
            "box/b",
            "epoch 1 of 2: loss 0.5000, clean 90.00 %, adversarial 50.00 %, held out 70.00 %, "
            "held out under PGD 25.00 %, lr 0.1, 1,000 images/s, 1.0 s",
        ),
        ("box/b", "result: clean 95.00 %, weights of epoch 2, 10 parameters, checkpoint aaaaaaaaaaaa, 2.0 s"),
        ("box/b", "succeeded"),
    ]


def test_an_evaluation_that_two_workers_share(db: Engine) -> None:
    job_id = jobs.create(db, resolve("autoattack-cifar10-linf", {"model.zoo": "cifar10/Linf/Standard"})).id
    first = start(db, job_id, "box/a")
    claims.announce(db, first, [(0, 0), (0, 1)])
    claims.take_chunk(db, first, [(0, 0), (0, 1)])
    second = start(db, job_id, "box/b")
    clean = BATCH.model_copy(update={"stage": 0, "name": "clean", "phase": "clean", "eps": 0.0, "batches": 2})
    claims.append(db, second, clean)
    claims.append(db, first, BATCH.model_copy(update={"eps": 8 / 255, "warnings": ("zero gradients",)}))
    claims.leave(db, second)
    claims.finish(db, first, JUDGED)
    assert told(db, job_id)[2:] == [
        ("box/b", "joined, attempt 2"),
        ("box/b", "clean, batch 1 of 2: 1 of 2 images wrong, 1 stand, 1.0 s"),
        ("box/a", "apgd-t, audit at 8/255: 1 of 2 images broken, 1 stand, 1.0 s"),
        ("box/a", "warning: zero gradients"),
        ("box/b", "left"),
        ("box/a", "result: clean 100.00 %, robust 50.00 %, 2 test images, checkpoint aaaaaaaaaaaa, 1.0 s"),
        ("box/a", "succeeded"),
    ]


def test_corruptions() -> None:
    done = CorruptionDone(
        corruption="gaussian_noise", severity=3, images=360, accuracy=0.5, not_finite=0, seconds=1.0
    )
    said = [Said(1, 0.0, 1, "corruption", done.model_dump(mode="json"))]
    assert [line.text for line in lines(said)] == ["gaussian noise, severity 3: accuracy 50.00 % on 360 images"]


def test_what_an_older_service_did_not_say() -> None:
    said = [
        Said(1, 0.0, 1, "epoch", {"epoch": 1, "epochs": 2, "loss": 1.5, "lr": 0.1, "seconds": 3.0}),
        Said(2, 0.0, 1, "started", {"device": "cpu", "resumed": False}),
        Said(3, 0.0, 1, "finished", {"result": {"kind": "train", "clean_accuracy": 0.5}}),
        Said(4, 0.0, 1, "something", {}),
    ]
    assert [line.text for line in lines(said)] == [
        "epoch 1 of 2: loss 1.5000, lr 0.1, 3.0 s", "begins on cpu", "result: clean 50.00 %", "something",
    ]  # fmt: skip


def test_nobody_forges_a_line_or_steers_a_terminal() -> None:
    hostile = "bad\n2026-01-01 00:00:00 UTC  anna  succeeded\x1b[2J\u202e\u2028end"
    said = {"status": "failed", "reason": hostile, "actor": "w\r\n1"}
    [line] = lines([Said(1, 0.0, 1, "status", said)])
    assert line.who == "w 1"
    assert str(line).isprintable()
    assert line.text == "failed: bad 2026-01-01 00:00:00 UTC anna succeeded [2J end"


def test_a_whole_log_is_written_in_parts(db: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joblog, "_PAGE", 3)
    job_id = jobs.create(db, TRAIN).id
    claim = start(db, job_id, "box/a")
    for number in range(1, 8):
        claims.append(db, claim, EPOCH.model_copy(update={"epoch": number}))
    parts = list(written(db, job_id))
    assert [part.count("\n") for part in parts] == [3, 3, 3]
    assert "".join(parts) == "".join(f"{line}\n" for line in lines(jobs.events(db, job_id)))
    assert parts[-1].count("  box/a  epoch ") == 3  # who it is was said parts before
