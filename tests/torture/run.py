"""One run of all jobs, calm or tortured, and what it left."""

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any, Literal

from processes import wait_until

from service import jobs
from service.client import ServiceError
from torture import faults, ledger
from torture.containers import processes_with
from torture.deployment import Deployment
from torture.questions import Family, Question, submit
from torture.witnesses import Reader, essence, lost

Say = Callable[[str], None]


@dataclass
class Outcome:
    """What one question came to."""

    title: str
    status: str
    reason: str | None
    attempts: int
    essence: Any
    """The result without what is of the run; absent without a result."""
    evidence: Path | None
    lost_events: list[str]


@dataclass
class Left:
    """What a run left, all of it."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    """By the question's title."""
    faults: Counter[str] = field(default_factory=Counter)
    duplicates: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Whatever else is not as it should be."""
    notes: list[str] = field(default_factory=list)


class Run:
    """All families on one deployment."""

    def __init__(self, on: Deployment, families: Sequence[Family], say: Say) -> None:
        self._on, self._families, self._say = on, families, say
        self._ids: dict[str, str] = {}
        self._readers: dict[str, Reader] = {}
        self.left = Left()

    @property
    def questions(self) -> list[Question]:
        return [question for family in self._families for question in family]

    def calm(self, seconds: float) -> Left:
        """Without a fault."""
        for family in self._families:
            self._submit(family)
        self._settle(seconds)
        return self.left

    def tortured(self, number: int, chance: random.Random, seconds: float) -> Left:
        """With so many faults while jobs are open. A family comes when its share of them has passed."""
        began = time.monotonic()
        submitting = Thread(target=self._submit_as_faults_pass, args=(number,), daemon=True)
        submitting.start()
        for kind in faults.kinds(self._on, chance):
            time.sleep(min(chance.expovariate(1 / 1.5), 5))
            at, open_before = time.monotonic() - began, self._open()
            if not open_before and len(self._ids) == len(self.questions):
                break  # there is nobody left to torture
            what = faults.KINDS[kind](self._on, chance)
            what = f"{kind}: {what}" if what else kind
            if open_before:
                self.left.faults[kind] += 1
            self._say(f"{at:7.1f} s  {what}  [{open_before} of {len(self._ids)} jobs open]")
            if self.left.faults.total() >= number:
                break
        submitting.join(120)
        self._settle(seconds)
        return self.left

    def _open(self) -> int:
        """Jobs that are taken and, as far as their readers were told, have not ended."""
        return sum(not reader.ended for reader in list(self._readers.values()))

    # --- asking -------------------------------------------------------------------------------------------

    def _submit_as_faults_pass(self, number: int) -> None:
        for place, family in enumerate(self._families):
            share = number * place / len(self._families)
            while self.left.faults.total() < share and self._open():
                time.sleep(0.2)
            self._submit(family)

    def _submit(self, family: Family) -> None:
        for question in family:
            while question.title not in self._ids:
                try:
                    job_id = submit(self._on.client, question, self._ids)
                except ServiceError:
                    time.sleep(0.5)  # no answer, or none in time: look whether it was taken, and ask again
                    continue
                self._ids[question.title] = job_id
                self._readers[question.title] = Reader(self._on.url, job_id)

    # --- looking ------------------------------------------------------------------------------------------

    def _settle(self, seconds: float) -> None:
        """Wait for all jobs, then look at everything."""
        wait_until(lambda: len(self._ids) == len(self.questions), 120, "all jobs to be taken")
        with suppress(AssertionError):  # the outcomes say which
            wait_until(lambda: not ledger.unfinished(self._on.db), seconds, "all jobs to end")
        for question in self.questions:
            self.left.outcomes[question.title] = self._outcome(question)
        work = self._on.disk.path / "work"
        with suppress(AssertionError):
            wait_until(lambda: not any(work.glob("*")), 60, "the work to be cleared away")
        self.left.problems += [f"{path.name} was left in the work directory" for path in sorted(work.glob("*"))]
        self.left.problems += ledger.problems(self._on.db)
        self.left.duplicates += ledger.questions_twice(self._on.db, self._ids)
        self.left.duplicates += self._rows_twice()
        self.left.notes += [f"{c.name} was started {c.starts} times" for c in self._on.containers]
        again = sum(reader.connections - 1 for reader in self._readers.values())
        self.left.notes.append(f"event streams were taken up again {again} times")
        self._on.stop()
        self._look_for_leftovers()

    def _outcome(self, question: Question) -> Outcome:
        job_id, reader = self._ids[question.title], self._readers[question.title]
        reader.join(30)
        job = self._on.client.job(job_id).document
        written = {event.id: event.payload for event in jobs.events(self._on.db, job_id)}
        names = {job_id: title for title, job_id in self._ids.items()}
        return Outcome(
            title=question.title,
            status=job["status"],
            reason=job["reason"],
            attempts=job["attempt"],
            essence=essence(job["result"], names) if job["result"] else None,
            evidence=self._files(question, job),
            lost_events=lost(list(reader.seen), written) + ([] if reader.ended else ["the stream did not end"]),
        )

    def _files(self, question: Question, job: dict[str, Any]) -> Path | None:
        """Fetch what the job left, and have its sha256 checked; the path of the evidence."""
        if not job["result"]:
            return None
        folder = self._on.logs / "files"
        folder.mkdir(exist_ok=True)
        path = folder / question.title.replace(" ", "-")
        kind: Literal["evidence", "checkpoint"] = "evidence" if question.kind == "evaluate" else "checkpoint"
        try:
            self._on.client.job(job["id"]).download(kind, path)
        except ServiceError as error:
            self.left.problems.append(f"{question.title}: {error}")
            return None
        return path if kind == "evidence" else None

    def _rows_twice(self) -> list[str]:
        """What is on the leaderboard more than once, or should not be; what is missing is a problem."""
        board = self._on.client.leaderboard(dataset="digits", threat_model="Linf", eps=0.2)
        found = Counter(row.job_id for row in board.rows if row.job_id)
        expected = {self._ids[question.title] for question in self.questions if question.kind == "evaluate"}
        missing = expected - found.keys()
        self.left.problems += [f"the evaluation {job_id} is not on the leaderboard" for job_id in sorted(missing)]
        twice = [f"job {job_id} has {count} rows" for job_id, count in found.items() if count > 1]
        return twice + [f"job {job_id} has a row and was not asked for" for job_id in found.keys() - expected]

    def _look_for_leftovers(self) -> None:
        left = processes_with("DKLBENCH_DATA_DIR", str(self._on.disk.path))
        self.left.problems += [f"process {process.pid} was left: {process.cmdline()}" for process in left]
        late = {c.name: c.late for c in self._on.containers if c.late}
        self.left.notes += [f"{name} had to be killed {n} times after SIGTERM" for name, n in late.items()]
