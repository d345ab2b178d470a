"""The ledger driven in arbitrary order against a plain dict: at most one owner, no job lost, no fact doubled."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule
from samples import EPOCH, PROGRESS, TRAIN, TRAINED
from sqlalchemy import update

from service import jobs
from service.db import Job, connect, migrate, writing

MAX_LOSSES = 3


class LedgerMachine(RuleBasedStateMachine):
    """`expected` is what a reader of the diagram in service/jobs.py would say."""

    ids = Bundle("ids")
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.db = connect(f"sqlite:///{Path(self.folder.name) / 'ledger.sqlite'}")
        migrate(self.db)
        self.expected: dict[str, str] = {}
        self.attempt: dict[str, int] = {}
        self.losses: dict[str, int] = {}
        self.epochs: dict[str, set[int]] = {}

    def teardown(self) -> None:
        self.db.dispose()
        self.folder.cleanup()

    def _owns(self, claim: jobs.Claim) -> bool:
        is_active = self.expected[claim.job_id] in {"running", "cancelling"}
        return is_active and self.attempt[claim.job_id] == claim.attempt

    @rule(target=ids)
    def submit(self) -> str:
        job_id = jobs.create(self.db, TRAIN).id
        self.expected[job_id], self.attempt[job_id], self.losses[job_id] = "queued", 0, 0
        self.epochs[job_id] = set()
        return job_id

    @rule(target=claims, job_id=ids, worker=st.sampled_from(["w1", "w2"]))
    def claim(self, job_id: str, worker: str) -> jobs.Claim:
        taken = jobs.claim(self.db, job_id, worker=worker, lease_seconds=60)
        assert (taken is not None) == (self.expected[job_id] == "queued")
        if taken is None:  # somebody else's message about it: it must be worth nothing
            return jobs.Claim(job_id, -1, worker, TRAIN, None)
        self.expected[job_id] = "running"
        self.attempt[job_id] += 1
        assert taken.attempt == self.attempt[job_id]
        return taken

    @rule(claim=claims, epoch=st.integers(1, 3))
    def append(self, claim: jobs.Claim, epoch: int) -> None:
        if not self._owns(claim):
            with pytest.raises(jobs.ClaimLostError):
                jobs.append(self.db, claim, EPOCH)
            return
        go_on = jobs.append(self.db, claim, EPOCH.model_copy(update={"epoch": epoch}))
        assert jobs.append(self.db, claim, PROGRESS) == go_on
        assert go_on == (self.expected[claim.job_id] == "running")
        self.epochs[claim.job_id].add(epoch)

    @rule(claim=claims, how=st.sampled_from(["finish", "fail", "stopped"]))
    def end(self, claim: jobs.Claim, how: str) -> None:
        act = {
            "finish": lambda: jobs.finish(self.db, claim, TRAINED),
            "fail": lambda: jobs.fail(self.db, claim, "loss is nan"),
            "stopped": lambda: jobs.stopped(self.db, claim),
        }[how]
        if not self._owns(claim):
            with pytest.raises(jobs.ClaimLostError):
                act()
            return
        act()
        was_cancelled = self.expected[claim.job_id] == "cancelling"
        ends = {"finish": "succeeded", "fail": "failed", "stopped": "queued"}
        self.expected[claim.job_id] = "canceled" if was_cancelled else ends[how]

    @rule(job_id=ids)
    def cancel(self, job_id: str) -> None:
        before = self.expected[job_id]
        if before in {"succeeded", "failed"}:
            with pytest.raises(jobs.TooLateError):
                jobs.cancel(self.db, job_id)
            return
        jobs.cancel(self.db, job_id)
        self.expected[job_id] = {"queued": "canceled", "running": "cancelling"}.get(before, before)

    @rule(job_id=ids)
    def worker_dies(self, job_id: str) -> None:
        with writing(self.db) as session:
            session.execute(update(Job).where(Job.id == job_id, Job.lease_until > 0).values(lease_until=0.0))
        taken_back = jobs.requeue_lost(self.db, max_losses=MAX_LOSSES)
        was = self.expected[job_id]
        assert taken_back == ([job_id] if was in {"running", "cancelling"} else [])
        if taken_back:
            self.losses[job_id] += 1
            requeued = "queued" if self.losses[job_id] < MAX_LOSSES else "failed"
            self.expected[job_id] = "canceled" if was == "cancelling" else requeued

    @invariant()
    def the_ledger_says_what_the_diagram_says(self) -> None:
        for job_id, status in self.expected.items():
            job = jobs.get(self.db, job_id)
            assert (job.status, job.attempt) == (status, self.attempt[job_id])
            assert (job.worker is not None) == (status in {"running", "cancelling"})
            assert (job.result is not None) == (status == "succeeded")
            events = jobs.events(self.db, job_id)
            assert sorted(e.payload["epoch"] for e in events if e.kind == "epoch") == sorted(self.epochs[job_id])
            assert [e.payload["status"] for e in events if e.kind == "status"][-1] == status

    @invariant()
    def every_waiting_job_will_be_sent(self) -> None:
        waiting = {job_id for job_id, status in self.expected.items() if status == "queued"}
        assert set(jobs.take_unsent(self.db, resend_seconds=0)) == waiting


LedgerMachine.TestCase.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestLedger = LedgerMachine.TestCase
