"""The ledger driven in arbitrary order against a plain dict, on both databases.

At most one worker per training and per chunk, no job lost, no fact doubled, whatever is submitted, claimed,
beaten, canceled, doubled or reordered, and however the clock jumps.
"""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule, run_state_machine_as_test
from samples import EPOCH, JUDGED, PROGRESS, TRAIN, TRAINED
from sqlalchemy import Engine, delete, func, select, update

from dkl.catalog import resolve
from service import claims, healing, jobs
from service.db import reading, writing
from service.tables import Base, Chunk, Job, Seat

MAX_LOSSES = 3
EVALUATION = resolve("autoattack-cifar10-linf", {"model": {"timm": "resnet18.a1_in1k"}})
PARTS = [(0, 0), (0, 1), (0, 2)]
ACTIVE = {"running", "cancelling"}


class LedgerMachine(RuleBasedStateMachine):
    """`status`, `seats` and the rest are what a reader of the diagram in service/moves.py would say."""

    db: Engine

    ids = Bundle("ids")
    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        with writing(self.db) as session:
            session.execute(update(Job).values(parent_id=None, rerun_of=None))
            for table in reversed(Base.metadata.sorted_tables):
                if table.name != "audit_events":  # which nobody can empty
                    session.execute(delete(table))
        self.status: dict[str, str] = {}
        self.attempt: dict[str, int] = {}
        self.losses: dict[str, int] = {}
        self.seats: dict[str, set[int]] = {}
        self.epochs: dict[str, set[int]] = {}
        self.chunks: dict[str, dict[claims.Part, int | str | None]] = {}
        """Per announced part: None (free), the holder's attempt, or the verdicts' sha256."""
        self.parent: dict[str, str] = {}
        self.shared: set[str] = set()

    # --- what the diagram says ---

    def _has_seat(self, claim: claims.Claim) -> bool:
        return claim.attempt in self.seats[claim.job_id]

    def _is_ready(self, job_id: str) -> bool:
        if self.status[job_id] == "queued":
            parent = self.parent.get(job_id)
            return parent is None or self.status[parent] == "succeeded"
        return self.status[job_id] == "running" and None in self.chunks[job_id].values()

    def _vacate(self, job_id: str, attempt: int) -> None:
        self.seats[job_id].discard(attempt)
        held = {part: None for part, holder in self.chunks[job_id].items() if holder == attempt}
        self.chunks[job_id].update(held)

    def _end(self, job_id: str, status: str) -> None:
        self.status[job_id] = status
        self.seats[job_id].clear()
        if status == "succeeded":
            self.chunks[job_id].clear()
        else:  # it may be resumed, with the verdicts that it had
            free = {part: None for part, holder in self.chunks[job_id].items() if isinstance(holder, int)}
            self.chunks[job_id].update(free)
            for child, parent in self.parent.items():
                if parent == job_id and self.status[child] == "queued":
                    self._end(child, "failed")

    def _lose(self, job_id: str, attempt: int) -> None:
        self._vacate(job_id, attempt)
        self.losses[job_id] += 1
        if self.status[job_id] == "cancelling":
            if not self.seats[job_id]:
                self._end(job_id, "canceled")
        elif self.losses[job_id] >= MAX_LOSSES:
            self._end(job_id, "failed")
        elif not self.seats[job_id]:
            self.status[job_id] = "queued"

    # --- asking ---

    def _enter(self, job_id: str) -> str:
        self.status[job_id], self.attempt[job_id], self.losses[job_id] = "queued", 0, 0
        self.seats[job_id], self.epochs[job_id], self.chunks[job_id] = set(), set(), {}
        return job_id

    @rule(target=ids)
    def submit(self) -> str:
        return self._enter(jobs.create(self.db, TRAIN).id)

    @rule(target=ids)
    def submit_an_evaluation(self) -> str:
        job_id = self._enter(jobs.create(self.db, EVALUATION).id)
        self.shared.add(job_id)
        return job_id

    @rule(target=ids, parent=ids)
    def submit_one_that_waits(self, parent: str) -> str:
        recipe = resolve("autoattack-digits-linf", {"model.job": parent})
        if parent in self.shared or self.status[parent] in {"failed", "canceled", "cancelling"}:
            with pytest.raises(jobs.RefusedError):
                jobs.create(self.db, recipe)
            return parent
        job_id = self._enter(jobs.create(self.db, recipe).id)
        self.parent[job_id] = parent
        self.shared.add(job_id)
        return job_id

    @rule(job_id=ids)
    def cancel(self, job_id: str) -> None:
        match self.status[job_id]:
            case "succeeded" | "failed":
                with pytest.raises(jobs.TooLateError):
                    jobs.cancel(self.db, job_id)
                return
            case "queued":
                self._end(job_id, "canceled")
            case "running":
                self.status[job_id] = "cancelling"
        jobs.cancel(self.db, job_id)

    @rule(target=ids, job_id=ids)
    def rerun(self, job_id: str) -> str:
        if self.status[job_id] not in {"succeeded", "failed", "canceled"}:
            with pytest.raises(jobs.TooLateError):
                jobs.rerun(self.db, job_id)
            return job_id
        parent = self.parent.get(job_id)
        if parent is not None and self.status[parent] in {"failed", "canceled", "cancelling"}:
            with pytest.raises(jobs.RefusedError):
                jobs.rerun(self.db, job_id)
            return job_id
        again = self._enter(jobs.rerun(self.db, job_id).id)
        if parent is not None:
            self.parent[again] = parent
        if job_id in self.shared:
            self.shared.add(again)
        return again

    @rule(job_id=ids)
    def resume(self, job_id: str) -> None:
        parent = self.parent.get(job_id)
        if self.status[job_id] not in {"failed", "canceled"}:
            with pytest.raises(jobs.TooLateError):
                jobs.resume(self.db, job_id)
            return
        if parent is not None and self.status[parent] in {"failed", "canceled", "cancelling"}:
            with pytest.raises(jobs.RefusedError):
                jobs.resume(self.db, job_id)
            return
        jobs.resume(self.db, job_id)
        failed = [
            child for child in self.parent if self.parent[child] == job_id and self.status[child] == "failed"
        ]
        for resumed in (job_id, *failed):
            self.status[resumed], self.losses[resumed] = "queued", 0

    # --- working ---

    @rule(target=held, job_id=ids, worker=st.sampled_from(["w1", "w2", "w3"]))
    def claim(self, job_id: str, worker: str) -> claims.Claim:
        taken = claims.claim(self.db, job_id, worker=worker, lease_seconds=60)
        assert (taken is not None) == self._is_ready(job_id)
        if taken is None:  # a doubled or late message: it is worth nothing
            return multiple()
        self.attempt[job_id] += 1
        assert taken.attempt == self.attempt[job_id]
        self.status[job_id] = "running"
        self.seats[job_id].add(taken.attempt)
        return taken

    @rule(target=held)
    def an_evaluation_under_way(self) -> claims.Claim:
        """Random steps alone come so far too seldom."""
        job_id = self.submit_an_evaluation()
        seats = [self.claim(job_id, "w1")]
        self.announce(seats[0], len(PARTS))
        seats.append(self.claim(job_id, "w2"))
        for seat in seats:
            self.take(seat)
        return multiple(*seats)

    @rule(claim=held, epoch=st.integers(1, 3))
    def append(self, claim: claims.Claim, epoch: int) -> None:
        if not self._has_seat(claim):
            with pytest.raises(claims.ClaimLostError):
                claims.append(self.db, claim, EPOCH)
            return
        event = EPOCH.model_copy(update={"epoch": epoch})
        assert claims.append(self.db, claim, event, PROGRESS) == (self.status[claim.job_id] == "running")
        if epoch not in self.epochs[claim.job_id]:
            self.losses[claim.job_id] = 0
        self.epochs[claim.job_id].add(epoch)

    @rule(claim=held)
    def beat(self, claim: claims.Claim) -> None:
        if not self._has_seat(claim):
            with pytest.raises(claims.ClaimLostError):
                claims.heartbeat(self.db, claim, lease_seconds=60)
            return
        go_on = claims.heartbeat(self.db, claim, lease_seconds=60)
        assert go_on == (self.status[claim.job_id] == "running")

    @rule(claim=held, count=st.integers(1, len(PARTS)))
    def announce(self, claim: claims.Claim, count: int) -> None:
        if claim.job_id not in self.shared or not self._has_seat(claim):
            return
        claims.announce(self.db, claim, PARTS[:count])
        self.chunks[claim.job_id] = dict.fromkeys(PARTS[:count]) | self.chunks[claim.job_id]

    @rule(claim=held)
    def take(self, claim: claims.Claim) -> None:
        chunks = self.chunks[claim.job_id]
        if not chunks or not self._has_seat(claim):
            return
        taken = claims.take_chunk(self.db, claim, sorted(chunks))
        mine = [part for part in sorted(chunks) if chunks[part] == claim.attempt]
        free = [part for part in sorted(chunks) if chunks[part] is None]
        assert taken == next(iter(mine + free), None)
        if taken is not None:
            chunks[taken] = claim.attempt

    @rule(claim=held, part=st.sampled_from(PARTS))
    def judge(self, claim: claims.Claim, part: claims.Part) -> None:
        chunks = self.chunks[claim.job_id]
        if part not in chunks:
            return
        sha256 = f"{claim.attempt:064x}"
        if not self._has_seat(claim):
            with pytest.raises(claims.ClaimLostError):
                claims.chunk_done(self.db, claim, part, found_sha256=sha256)
            return
        claims.chunk_done(self.db, claim, part, found_sha256=sha256)
        if not isinstance(chunks[part], str):  # the first verdicts count
            chunks[part] = sha256
            self.losses[claim.job_id] = 0

    @rule(claim=held)
    def leave(self, claim: claims.Claim) -> None:
        if not self._has_seat(claim):
            return
        is_last = self.seats[claim.job_id] == {claim.attempt}
        assert claims.leave(self.db, claim) != is_last
        if not is_last:
            self._vacate(claim.job_id, claim.attempt)

    @rule(claim=held, how=st.sampled_from(["finish", "fail", "stopped", "setback"]))
    def end(self, claim: claims.Claim, how: str) -> None:
        finished = JUDGED if claim.job_id in self.shared else TRAINED
        act = {
            "finish": lambda: claims.finish(self.db, claim, finished),
            "fail": lambda: claims.fail(self.db, claim, "loss is nan"),
            "stopped": lambda: claims.stopped(self.db, claim),
            "setback": lambda: claims.setback(self.db, claim, "no space left", pause_seconds=0),
        }[how]
        if not self._has_seat(claim):
            with pytest.raises(claims.ClaimLostError):
                act()
            return
        act()
        job_id, was_cancelling = claim.job_id, self.status[claim.job_id] == "cancelling"
        if how == "finish" and not was_cancelling:
            self._end(job_id, "succeeded")
        elif how == "fail":
            self._end(job_id, "canceled" if was_cancelling else "failed")
        else:
            self._vacate(job_id, claim.attempt)
            if not self.seats[job_id]:
                if was_cancelling:
                    self._end(job_id, "canceled")
                else:
                    self.status[job_id] = "queued"

    # --- faults ---

    @rule(claim=held, hung=st.booleans())
    def a_worker_dies_or_hangs(self, claim: claims.Claim, hung: bool) -> None:
        at = Seat.job_id == claim.job_id, Seat.attempt == claim.attempt
        with writing(self.db) as session:
            session.execute(update(Seat).where(*at).values({"progress_at" if hung else "lease_until": 0.0}))
        if hung:
            taken_back = healing.requeue_stalled(self.db, stall_seconds=60, max_losses=MAX_LOSSES)
        else:
            taken_back = healing.requeue_lost(self.db, max_losses=MAX_LOSSES)
        assert taken_back == ([claim.job_id] if self._has_seat(claim) else [])
        if taken_back:
            self._lose(claim.job_id, claim.attempt)

    @rule()
    def the_clock_jumps_ahead(self) -> None:
        """All leases run out at once, although every worker lives."""
        with writing(self.db) as session:
            session.execute(update(Seat).values(lease_until=Seat.lease_until - 1e6))
        order = [(job_id, attempt) for job_id in self.seats for attempt in sorted(self.seats[job_id])]
        taken_back = healing.requeue_lost(self.db, max_losses=MAX_LOSSES)
        assert set(taken_back) == {job_id for job_id, _ in order}
        for job_id, attempt in order:
            if attempt in self.seats[job_id]:
                self._lose(job_id, attempt)

    @rule()
    def the_clock_jumps_back(self) -> None:
        with writing(self.db) as session:
            session.execute(update(Seat).values(lease_until=Seat.lease_until + 1e6))
        assert healing.requeue_lost(self.db, max_losses=MAX_LOSSES) == []
        with writing(self.db) as session:
            session.execute(update(Seat).values(lease_until=Seat.lease_until - 1e6))

    # --- what always holds ---

    @invariant()
    def the_ledger_says_what_the_diagram_says(self) -> None:
        for job_id, status in self.status.items():
            job = jobs.get(self.db, job_id)
            assert (job.status, job.attempt, job.losses) == (status, self.attempt[job_id], self.losses[job_id])
            assert {seat.attempt for seat in job.seats} == self.seats[job_id]
            assert bool(job.seats) == (status in ACTIVE)
            assert len(job.seats) <= 1 or job_id in self.shared
            assert (job.result is not None) == (status == "succeeded")
            events = jobs.events(self.db, job_id)
            assert sorted(e.payload["epoch"] for e in events if e.kind == "epoch") == sorted(self.epochs[job_id])
            said = [e.payload for e in events if e.kind == "status"]
            assert said[-1]["status"] == status
            assert all(payload["actor"] for payload in said)

    @invariant()
    def every_chunk_has_at_most_one_owner(self) -> None:
        with reading(self.db) as session:
            rows = session.scalars(select(Chunk)).all()
        found = {(row.job_id, row.stage, row.batch): row.found_sha256 or row.attempt for row in rows}
        expected = {
            (job_id, *part): holder for job_id, chunks in self.chunks.items() for part, holder in chunks.items()
        }
        assert found == expected

    @invariant()
    def every_waiting_job_will_be_sent(self) -> None:
        with writing(self.db) as session:
            session.execute(update(Job).values(sent_at=None))
        sent = {job_id for job_id, _ in healing.take_unsent(self.db, resend_seconds=0, lease_seconds=60)}
        assert sent == {j for j in self.status if self.status[j] == "queued" and self._is_ready(j)}

    @invariant()
    def nothing_else_is_there(self) -> None:
        with reading(self.db) as session:
            assert session.execute(select(func.count()).select_from(Job)).scalar_one() == len(self.status)


@pytest.fixture
def machine(db: Engine) -> type[LedgerMachine]:
    return type("Machine", (LedgerMachine,), {"db": db})


@pytest.mark.parametrize(
    "effort", [0.25, pytest.param(1, marks=pytest.mark.long), pytest.param(8, marks=pytest.mark.slow)]
)
def test_the_ledger_in_arbitrary_order(machine: type[LedgerMachine], db: Engine, effort: float) -> None:
    examples = int(effort * (15 if db.dialect.name == "sqlite" else 8))
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
