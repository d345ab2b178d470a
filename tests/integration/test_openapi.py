"""Every operation of the OpenAPI document with made-up input, good and bad: no 5xx, and all as documented.

New routes are covered as soon as they are in the document. An id in a path is every other time one that exists:
a parameter of a new name gets made-up values only, until `known` has some.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from samples import DISTILLED, EPOCH, JUDGED, TRAINED
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.python.asgi import get_client, shutdown_lifespans
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from sqlalchemy import Engine

from dkl.catalog import resolve
from service import claims, jobs, keys
from service.app import create_app
from service.callers import COMMAND_LINE
from service.db import connect, migrate
from service.imported import bring
from service.in_print import packaged_documents
from service.settings import Settings

WITHOUT, READ, SUBMIT, ADMIN = "without a key", "read", "submit", "admin"
EXAMPLES = 3
"""Per operation, caller, and good or bad input."""
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FastAPI, Mapping[str, str]]]:
    """The application, and a key of each scope."""
    data_dir: Path = tmp_path_factory.mktemp("data")
    own = Settings(
        data_dir=data_dir,
        database_url="",
        broker_url="",
        anonymous="leaderboard",
        allowed_hosts=("testserver",),
        requests_per_minute=10**9,
        max_queued=10**9,
    )
    db = connect(own.database)
    migrate(db)
    db.dispose()
    app = create_app(own)
    made = {
        scope: keys.create(app.state.dkl.db, own, keys.KeyRequest(name=scope, scope=scope), caller=COMMAND_LINE)[1]  # type: ignore[arg-type]
        for scope in (READ, SUBMIT, ADMIN)
    }
    yield app, {WITHOUT: "", **made}
    shutdown_lifespans()


@pytest.fixture(scope="module")
def known(service: tuple[FastAPI, Mapping[str, str]]) -> Mapping[str, list[str]]:
    """Values of path parameters that name something. The jobs have ended: the streams of others have no end."""
    app, _ = service
    db: Engine = app.state.dkl.db
    training = _ended(db, "natural-digits", {}, TRAINED)
    evaluation = _ended(db, "autoattack-digits-linf", {"model.job": training}, JUDGED)
    distillation = _ended(db, "kd-digits", {"teacher.job": training}, DISTILLED)
    canceled = jobs.create(db, resolve("ikl-at-digits", {})).id
    jobs.cancel(db, canceled, caller=COMMAND_LINE)
    spare = keys.KeyRequest(name="spare", scope="read")
    return {
        "job_id": [training, evaluation, distillation, canceled],
        "name": ["ikl-at-digits"],
        "entry": [evaluation, "robustbench-cifar10-Linf-Standard", _imported(db)],
        "key_id": [keys.create(db, app.state.dkl.settings, spare, caller=COMMAND_LINE)[0].id],
    }


def _imported(db: Engine) -> str:
    """A published row that somebody imported, until it is deleted."""
    found = packaged_documents()[0].model_copy(update={"key": "Imported"})
    bring(db, [found], caller=COMMAND_LINE)
    return found.entry


def _ended(db: Engine, name: str, overrides: dict[str, Any], finished: Any) -> str:
    job = jobs.create(db, resolve(name, overrides), name=name)
    claim = claims.claim(db, job.id, worker="w", lease_seconds=600)
    assert claim is not None
    claims.append(db, claim, EPOCH)
    claims.finish(db, claim, finished)
    return job.id


GOOD, BAD = GenerationMode.POSITIVE, GenerationMode.NEGATIVE


@pytest.mark.parametrize(
    ("mode", "caller"),
    [
        (GOOD, SUBMIT),
        pytest.param(BAD, ADMIN, marks=pytest.mark.long),
        *(pytest.param(GOOD, caller, marks=pytest.mark.slow) for caller in (WITHOUT, READ, ADMIN)),
        *(pytest.param(BAD, caller, marks=pytest.mark.slow) for caller in (WITHOUT, READ, SUBMIT)),
    ],
)
def test_every_operation_answers_as_documented(
    service: tuple[FastAPI, Mapping[str, str]], known: Mapping[str, list[str]], mode: GenerationMode, caller: str
) -> None:
    app, made = service
    document = app.openapi()
    schema = schemathesis.openapi.from_dict(document)
    headers = {"Authorization": f"Bearer {made[caller]}"} if made[caller] else {}
    faults: dict[str, str] = {}
    asked = 0
    with get_client(app, max_stream_events=50) as client:
        for found in schema.get_all_operations():
            operation = found.ok()

            @seed(0)
            @settings(
                max_examples=EXAMPLES,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode), data=st.data())
            def ask(case: schemathesis.Case, data: st.DataObject) -> None:
                nonlocal asked
                for parameter in case.path_parameters.keys() & known.keys():
                    if data.draw(st.booleans()):
                        case.path_parameters[parameter] = data.draw(st.sampled_from(known[parameter]))
                asked += 1
                response = case.call(base_url="http://testserver", session=client, headers=headers)
                case.validate_response(response, checks=CHECKS, headers=headers)

            try:
                ask()
            except Unsatisfiable:
                continue  # it takes no input that could be bad
            except Exception as error:  # of any kind: the other operations are looked at all the same
                faults[operation.label] = str(error)
    assert not faults, "\n\n".join(f"{label}: {sentence}" for label, sentence in faults.items())
    print(f"{asked} requests")
