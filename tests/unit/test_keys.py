"""API keys, the secret under them, the counts of requests, and the cookie of a session."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError
from sqlalchemy import Engine, select, text, update
from sqlalchemy.exc import DBAPIError

from service import audit, keys
from service.callers import COMMAND_LINE, Caller
from service.db import connect, migrate, reading, writing
from service.keys import BadKeyError, KeyRequest, UnknownKeyError
from service.limits import Limits, place_of
from service.secret import secret_for
from service.settings import Settings
from service.tables import ApiKey


@pytest.fixture
def made(db: Engine, settings: Settings) -> tuple[ApiKey, str]:
    return keys.create(db, settings, KeyRequest(name="anna", scope="submit"), caller=COMMAND_LINE)


# --- the secret -----------------------------------------------------------------------------------------------


def test_the_secret_is_made_once_and_only_its_owner_reads_it(settings: Settings) -> None:
    first = secret_for(settings, "api keys")
    path = settings.data_dir / "secret"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(path.read_bytes()) == 64
    secret_for.cache_clear()  # another process
    assert secret_for(settings, "api keys") == first
    assert list(settings.data_dir.iterdir()) == [path]


def test_processes_that_start_together_agree_on_the_secret(settings: Settings) -> None:
    program = (
        "from service.secret import secret_for; from service.settings import Settings; "
        "print(secret_for(Settings(), 'webhooks').hex())"
    )
    environment = {**os.environ, **settings.as_environment()}
    started = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert len({process.communicate(timeout=60)[0] for process in started}) == 1
    assert list(settings.data_dir.iterdir()) == [settings.data_dir / "secret"]


def test_every_purpose_has_its_own_secret(settings: Settings) -> None:
    given = settings.model_copy(update={"secret_key": SecretStr("0123456789abcdef" * 2)})
    secrets = {
        secret_for(s, purpose) for s in (settings, given) for purpose in ("api keys", "sessions", "webhooks")
    }
    assert len(secrets) == 6
    assert {len(secret) for secret in secrets} == {32}


def test_a_short_secret_is_refused(settings: Settings) -> None:
    short = settings.model_copy(update={"secret_key": SecretStr("changeme")})
    with pytest.raises(
        ValueError, match="has 8 characters, expected at least 32; set DKLBENCH_SECRET_KEY"
    ) as refusal:
        secret_for(short, "sessions")
    assert "changeme" not in str(refusal.value)


def test_a_key_is_for_asking_and_no_child_inherits_it(settings: Settings) -> None:
    asking = settings.model_copy(update={"key": SecretStr("dkl_secret")})
    assert asking.as_environment()["DKLBENCH_KEY"] == ""
    assert "dkl_secret" not in repr(asking)


# --- keys -----------------------------------------------------------------------------------------------------


def test_a_key_is_recognised_and_not_stored(db: Engine, settings: Settings, made: tuple[ApiKey, str]) -> None:
    row, key = made
    assert key.startswith(f"dkl_{row.id}_")
    assert len(key) == 4 + 12 + 1 + 43 + 1 + 8
    found = keys.recognised(db, settings, key)
    assert (found.id, found.scope, found.name) == (row.id, "submit", "anna")
    with reading(db) as session:
        stored = session.execute(text("SELECT * FROM api_keys")).one()
    assert not any(isinstance(value, str) and key[17:60] in value for value in stored)


def test_keys_differ(db: Engine, settings: Settings) -> None:
    wanted = KeyRequest(name="n", scope="read")
    assert len({keys.create(db, settings, wanted, caller=COMMAND_LINE)[1] for _ in range(20)}) == 20


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda key: "", "is not an API key"),
        (lambda key: "Bearer " + key, "is not an API key"),
        (lambda key: key + "\n", "is not an API key"),
        (lambda key: key.replace("_", "-"), "is not an API key"),
        (lambda key: key[:20] + ("A" if key[20] != "A" else "B") + key[21:], "typing mistake"),
        (lambda key: keys._new(), "not one of this service's"),
    ],
)
def test_what_is_no_key(db: Engine, settings: Settings, made: tuple[ApiKey, str], change, sentence: str) -> None:
    with pytest.raises(BadKeyError, match=sentence) as refusal:
        keys.recognised(db, settings, change(made[1]))
    assert made[1][17:40] not in str(refusal.value)


def signed(body: str) -> str:
    """With the checksum that fits."""
    return f"{body}_{keys._check(body)}"


def test_the_id_of_a_key_is_not_enough(db: Engine, settings: Settings, made: tuple[ApiKey, str]) -> None:
    other = keys._new()
    with pytest.raises(BadKeyError, match="not one of this service's"):
        keys.recognised(db, settings, signed(f"dkl_{made[0].id}_{other[17:60]}"))


def test_under_another_secret_no_key_fits(db: Engine, settings: Settings, made: tuple[ApiKey, str]) -> None:
    other = settings.model_copy(update={"secret_key": SecretStr("x" * 32)})
    with pytest.raises(BadKeyError):
        keys.recognised(db, other, made[1])


@pytest.mark.parametrize("known", [True, False])
def test_digests_are_compared_in_constant_time(
    db: Engine, settings: Settings, made: tuple[ApiKey, str], known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[str, str]] = []
    monkeypatch.setattr(keys.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    key = made[1] if known else keys._new()
    try:
        keys.recognised(db, settings, key)
    except BadKeyError:
        assert not known
    assert [(len(a), len(b)) for a, b in compared] == [(64, 64)]  # an unknown id takes the same way


def test_a_revoked_key_is_refused_and_says_so(db: Engine, settings: Settings, made: tuple[ApiKey, str]) -> None:
    row, key = made
    keys.revoke(db, row.id, caller=COMMAND_LINE)
    for ask in (lambda: keys.recognised(db, settings, key), lambda: keys.still_good(db, row.id)):
        with pytest.raises(BadKeyError, match=f"'anna' \\({row.id}\\) was revoked"):
            ask()


def test_revoking_is_final_and_audited_once(db: Engine, made: tuple[ApiKey, str]) -> None:
    admin = Caller("root (0123456789ab)", "admin", "0123456789ab", "10.0.0.9", "r1")
    first = keys.revoke(db, made[0].id, caller=admin).revoked_at
    assert keys.revoke(db, made[0].id, caller=admin).revoked_at == first
    (revoked, created) = audit.recent(db)
    assert (created.action, created.object, created.actor) == ("key.create", made[0].id, "command line")
    assert created.detail == {"name": "anna", "scope": "submit", "max_running": None, "max_storage": None}
    assert (revoked.action, revoked.object, revoked.actor) == ("key.revoke", made[0].id, admin.name)
    assert (revoked.address, revoked.request_id) == ("10.0.0.9", "r1")
    assert made[1] not in str([entry.detail for entry in (revoked, created)])


def test_only_known_keys_are_revoked(db: Engine) -> None:
    with pytest.raises(UnknownKeyError, match="there is no key 'nobody'"):
        keys.revoke(db, "nobody", caller=COMMAND_LINE)


def test_the_audit_log_refuses_changes(db: Engine, made: tuple[ApiKey, str]) -> None:
    for statement in ("UPDATE audit_events SET actor = 'nobody'", "DELETE FROM audit_events"):
        with pytest.raises(DBAPIError, match="append-only"), writing(db) as session:
            session.execute(text(statement))


def test_the_audit_log_is_read_in_pages(db: Engine, settings: Settings) -> None:
    for number in range(5):
        keys.create(db, settings, KeyRequest(name=f"n{number}", scope="read"), caller=COMMAND_LINE)
    newest = audit.recent(db, limit=2)
    older = audit.recent(db, before=newest[-1].id, limit=10)
    assert [entry.detail["name"] for entry in (*newest, *older)] == ["n4", "n3", "n2", "n1", "n0"]


def test_use_is_noted_once_a_minute(db: Engine, settings: Settings, made: tuple[ApiKey, str]) -> None:
    row, key = made

    def used_at() -> float | None:
        with reading(db) as session:
            return session.scalars(select(ApiKey.used_at).where(ApiKey.id == row.id)).one()

    assert used_at() is None
    keys.recognised(db, settings, key)
    first = used_at()
    keys.recognised(db, settings, key)
    assert used_at() == first is not None
    with writing(db) as session:
        session.execute(update(ApiKey).values(used_at=first - 61))
    keys.still_good(db, row.id)
    assert used_at() >= first


def test_a_full_disk_keeps_no_key_from_reading(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    db = connect(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    migrate(db)
    row, key = keys.create(db, settings, KeyRequest(name="anna", scope="read"), caller=COMMAND_LINE)
    with db.connect() as connection:
        connection.exec_driver_sql(
            "PRAGMA query_only=ON"
        )  # the pool's one connection refuses to write from now on
    assert keys.recognised(db, settings, key).id == row.id
    assert "could not note that key" in caplog.text
    db.dispose()


def test_somebody_may(db: Engine, made: tuple[ApiKey, str]) -> None:
    assert keys.somebody_may(db, "submit", "admin")
    assert not keys.somebody_may(db, "admin")
    keys.revoke(db, made[0].id, caller=COMMAND_LINE)
    assert not keys.somebody_may(db, "submit", "admin")


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": " anna"},
        {"name": "an\nna"},
        {"name": "\x1b[31m"},
        {"name": "a" * 81},
        {"scope": "root"},
        {"max_running": 0},
        {"max_storage": -1},
        {"digest": "0" * 64},
    ],
)
def test_keys_that_cannot_be_made(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        KeyRequest.model_validate({"name": "anna", "scope": "read", **wrong})


@pytest.mark.parametrize("name", ["a", "Anna Ö.", "ci / nightly", "日本"])
def test_names_of_keys(name: str) -> None:
    assert KeyRequest(name=name, scope="read").name == name


# --- counting -------------------------------------------------------------------------------------------------


@pytest.fixture
def limits(settings: Settings) -> Limits:
    return Limits(settings.model_copy(update={"requests_per_minute": 5}))


def test_one_too_many_has_to_wait(limits: Limits) -> None:
    assert [limits.wait(limits.requests, "anna") for _ in range(5)] == [None] * 5
    assert 1 <= (limits.wait(limits.requests, "anna") or 0) <= 60
    assert limits.wait(limits.requests, "bert") is None


def test_processes_count_together_in_redis(settings: Settings) -> None:
    redis_url = os.environ.get("DKLBENCH_TEST_REDIS", "redis://127.0.0.1:6379/0")
    shared = settings.model_copy(update={"broker_url": redis_url, "requests_per_minute": 3})
    processes = [Limits(shared), Limits(shared)]
    who = os.urandom(8).hex()
    answers = [processes[i % 2].wait(processes[0].requests, who) for i in range(4)]
    assert answers[:3] == [None] * 3
    assert answers[3] is not None


def test_without_redis_the_service_goes_on_and_counts_itself(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    away = settings.model_copy(update={"broker_url": "redis://:hidden@127.0.0.1:1/0", "requests_per_minute": 3})
    limits = Limits(away)
    answers = [limits.wait(limits.requests, "anna") for _ in range(4)]
    assert answers[:3] == [None] * 3
    assert answers[3] is not None
    assert caplog.text.count("Redis does not answer") == 1  # it is left alone for a while
    assert "hidden" not in caplog.text


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("10.0.0.9", "10.0.0.9"),
        ("::ffff:10.0.0.9", "10.0.0.9"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("testclient", "testclient"),
    ],
)
def test_who_shares_a_count(address: str, place: str) -> None:
    assert place_of(address) == place
