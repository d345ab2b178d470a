"""A replay through a running service: the job runs again, and both results and evidence files are compared."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from samples import JUDGED, TRAIN, TRAINED
from serving import served_state
from witness import evidence

from dkl.catalog import resolve
from dkl.events import Finished
from dkl.evidence import Evidence, write_evidence
from service import claims, files, jobs
from service.client import Client
from service.replay import replay
from service.settings import Settings
from service.state import State


@dataclass
class Served:
    client: Client
    state: State
    folder: Path

    def run(self, job_id: str, finished: Finished = TRAINED, found: Evidence | None = None, **result: Any) -> None:
        """What a worker would do, without the work."""
        if found is not None:
            write_evidence(self.folder / "evidence", found)
            sha256 = files.keep(self.state.db, self.state.artifacts, self.folder / "evidence", key_id=None)
            result = {**result, "evidence_sha256": sha256}
        claim = claims.claim(self.state.db, job_id, worker="w", lease_seconds=60)
        assert claim is not None
        claims.finish(self.state.db, claim, Finished(result=finished.result.model_copy(update=result)))


@pytest.fixture
def served(settings: Settings, tmp_path: Path) -> Iterator[Served]:
    with served_state(settings) as (client, state):
        yield Served(client, state, tmp_path)


def judged(served: Served, found: Evidence) -> str:
    model = jobs.create(served.state.db, TRAIN)
    served.run(model.id)
    job = jobs.create(served.state.db, resolve("autoattack-digits-linf", {"model.job": model.id}))
    served.run(job.id, JUDGED, found)
    return job.id


def test_a_training_is_identical(served: Served) -> None:
    job = jobs.create(served.state.db, TRAIN)
    served.run(job.id)
    report = replay(served.client, job.id, run=None, follow=lambda new: served.run(new.id, seconds=7.0))
    assert (report.verdict, report.same, report.job) == ("identical", True, job.id)
    assert served.client.job(report.rerun).document["rerun_of"] == job.id


def test_images_that_differ_are_counted_from_both_evidence_files(served: Served) -> None:
    job_id = judged(served, evidence())
    changed = evidence(broken_at=(-1, 1, 1, -1, -1))
    report = replay(served.client, job_id, run=None, follow=lambda new: served.run(new.id, JUDGED, changed))
    assert (report.verdict, report.same) == ("differs", False)
    assert [(row.at, row.only_before, row.only_after) for row in report.images] == [
        *(("clean", 0, 0), ("Linf 0.1", 0, 2), ("Linf 0.2", 0, 1)),
    ]
    again = replay(served.client, job_id, run=report.rerun, follow=lambda new: None)
    assert again.document() == report.document()
    assert len(jobs.recent(served.state.db)) == 3  # nothing was submitted this time


def test_evidence_that_is_gone_is_said_to_be(served: Served) -> None:
    job_id = judged(served, evidence())
    report = replay(served.client, job_id, run=None, follow=lambda new: served.run(new.id, JUDGED))
    assert report.verdict == "same numbers"
    [sentence] = report.unknown
    assert "is no longer stored here" in sentence


def test_what_cannot_be_compared_is_refused(served: Served) -> None:
    waiting = jobs.create(served.state.db, TRAIN)
    with pytest.raises(ValueError, match="is queued; only a result can be compared"):
        replay(served.client, waiting.id, run=None, follow=lambda new: None)
    served.run(waiting.id)
    other = jobs.create(served.state.db, resolve("natural-digits", {"seed": 9}))
    with pytest.raises(ValueError, match="their recipes are not the same"):
        replay(served.client, waiting.id, run=other.id, follow=lambda new: None)
    with pytest.raises(ValueError, match="is canceled: canceled before it started"):
        replay(served.client, waiting.id, run=None, follow=lambda new: jobs.cancel(served.state.db, new.id))
