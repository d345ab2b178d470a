"""When a number in print may stand beside what a training came to here."""

from typing import Any

import pytest
from samples import STARTED, TRAINED
from sqlalchemy import Engine

from dkl.catalog import resolve
from service import claims, jobs
from service.published import compare, compare_accuracy, entry_of
from service.tables import Job

NAME = "dajat-cifar100-wrn-34-10-2aa"


def trained(db: Engine, changes: dict[str, Any]) -> Job:
    job = jobs.create(db, resolve(NAME, changes), name=NAME)
    claim = claims.claim(db, job.id, worker="box:1", lease_seconds=3600)
    assert claim is not None
    claims.append(db, claim, STARTED)
    claims.finish(db, claim, TRAINED)
    return jobs.get(db, job.id)


def test_a_shorter_training_is_compared_and_says_what_differs(db: Engine) -> None:
    found = compare(trained(db, {"epochs": 2, "seed": 3}), None)
    assert found is not None
    assert (found.rows[0].published, found.rows[0].here) == (0.6874, TRAINED.result.clean_accuracy)
    assert found.changed == ["epochs"]


@pytest.mark.parametrize("dataset", ["cifar10", "npz:mine"])
def test_other_data_have_no_number_in_print(db: Engine, dataset: str) -> None:
    job = trained(db, {"dataset": dataset})
    assert entry_of(job) is None
    assert compare(job, None) is None
    assert compare_accuracy(job) is None
