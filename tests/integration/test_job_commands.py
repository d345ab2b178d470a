"""`dklbench log` and `dklbench resume-job` against a running service."""

import re
import threading
from collections.abc import Iterator

import pytest
import serving
from samples import EPOCH, TRAIN, TRAINED
from sqlalchemy import Engine
from typer.testing import CliRunner

from service import claims, jobs
from service.cli import app
from service.settings import Settings


@pytest.fixture
def served(settings: Settings) -> Iterator[tuple[str, Engine]]:
    """A service's address and its ledger."""
    with serving.served(settings) as (client, db):
        yield client.url, db


def dklbench(*words: str, url: str) -> str:
    answer = CliRunner().invoke(app, [*words, "--url", url])
    assert answer.exit_code == 0, answer.output
    return answer.output


def begin(db: Engine, job_id: str) -> claims.Claim:
    claim = claims.claim(db, job_id, worker="box/a", lease_seconds=60)
    assert claim is not None
    claims.append(db, claim, EPOCH)
    return claim


def test_the_log_is_printed_and_followed(served: tuple[str, Engine]) -> None:
    url, db = served
    job_id = jobs.create(db, TRAIN).id
    claim = begin(db, job_id)
    so_far = dklbench("log", job_id, url=url)
    assert re.findall(r"  box/a  (\w+)", so_far) == ["running", "epoch"]
    finishing = threading.Timer(1, lambda: claims.finish(db, claim, TRAINED))
    finishing.start()
    followed = dklbench("log", job_id, "--follow", url=url)
    finishing.join()
    assert followed.startswith(so_far)
    assert followed == dklbench("log", job_id, url=url)
    assert followed.splitlines()[-1].endswith("  box/a  succeeded")


def test_a_job_goes_on(served: tuple[str, Engine]) -> None:
    url, db = served
    job_id = jobs.create(db, TRAIN).id
    claims.fail(db, begin(db, job_id), "loss is nan")
    assert dklbench("resume-job", job_id, url=url) == f"job {job_id} is queued again\n"
    claims.finish(db, begin(db, job_id), TRAINED)
    assert dklbench("jobs", url=url).count(job_id) == 1
    refused = CliRunner().invoke(app, ["resume-job", job_id, "--url", url])
    assert refused.exit_code == 1
    assert "run it again instead" in str(refused.exception)
