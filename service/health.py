"""Whether this process could do what it is asked: the checks behind GET /readyz and `dklbench doctor`.

They tell no secret and no name, and cannot be used to cause load: they run at most once a second, each in one
thread at most, however often and however long somebody asks.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Literal

import redis
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Engine, func, select
from sqlalchemy.exc import SQLAlchemyError

from service.artifacts import StoreError, store_for
from service.db import SchemaError, newest_schema, now, reading, require_schema
from service.settings import Settings
from service.space import enough_space
from service.tables import Worker

_log = logging.getLogger(__name__)
CHECK_SECONDS = 3.0
"""A check that takes longer has failed."""
_FRESH_SECONDS = 1.0


class UnwellError(Exception):
    """What a check found wrong: one sentence, for everybody to read."""


class Check(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    ok: bool
    says: str
    """One sentence: what was found."""


class Readiness(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    status: Literal["ok", "unavailable"]
    checks: dict[str, Check]
    """database, migrations, broker, storage; workers is there to be read, and makes nothing unavailable."""


class Checks:
    """The checks of this process and what they found last; `create_app` has one."""

    def __init__(self, settings: Settings, db: Engine) -> None:
        self._checks: dict[str, Callable[[], str]] = {
            "database": lambda: check_database(db),
            "migrations": lambda: check_migrations(db),
            "broker": lambda: check_broker(settings),
            "storage": lambda: check_storage(settings),
            "workers": lambda: say_workers(db, settings),
        }
        self._running: dict[str, Future[str]] = {}
        self._one_at_a_time = asyncio.Lock()
        self._known: Readiness | None = None
        self._looked_at = 0.0

    async def look(self) -> Readiness:
        """What the checks find, now or within the last second."""
        async with self._one_at_a_time:
            if self._known is None or time.monotonic() - self._looked_at > _FRESH_SECONDS:
                found = await asyncio.gather(*map(self._check, self._checks))
                checks = dict(zip(self._checks, found, strict=True))
                well = all(check.ok for name, check in checks.items() if name != "workers")
                self._known = Readiness(status="ok" if well else "unavailable", checks=checks)
                self._looked_at = time.monotonic()
            return self._known

    async def _check(self, name: str) -> Check:
        running = self._running.get(name) or _in_thread(self._checks[name])
        self._running[name] = running
        try:
            says = await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(running)), CHECK_SECONDS)
        except TimeoutError:  # its thread stays the only one until it ends
            return Check(ok=False, says=f"no answer within {CHECK_SECONDS:g} s")
        except UnwellError as error:
            del self._running[name]
            return Check(ok=False, says=str(error))
        del self._running[name]
        return Check(ok=True, says=says)


def _in_thread(check: Callable[[], str]) -> Future[str]:
    """The check in a thread of its own, which the end of the process does not wait for."""
    future: Future[str] = Future()

    def run() -> None:
        try:
            future.set_result(check())
        except UnwellError as error:
            future.set_exception(error)
        except Exception as error:
            _log.warning("a readiness check failed: %s", error)
            future.set_exception(UnwellError("it could not be checked; the log says why"))

    threading.Thread(target=run, name="readiness", daemon=True).start()
    return future


# --- the checks -------------------------------------------------------------------------------------------


def check_database(db: Engine) -> str:
    """Whether the database answers."""
    try:
        with reading(db) as session:
            session.execute(select(1))
    except SQLAlchemyError as error:
        _log.warning("the database does not answer: %s", error)
        raise UnwellError("the database does not answer") from error
    return "the database answers"


def check_migrations(db: Engine) -> str:
    """Whether the database has the schema that this version was written for."""
    try:
        require_schema(db)
    except SchemaError as error:
        raise UnwellError(str(error)) from error
    except SQLAlchemyError as error:
        raise UnwellError("the database does not say which schema it has") from error
    return f"the schema is {newest_schema()}"


def check_broker(settings: Settings) -> str:
    """Whether the broker answers, where there is one."""
    if not settings.broker_url:
        return "none is used"
    try:
        with redis.Redis.from_url(
            settings.broker_url, socket_timeout=CHECK_SECONDS, socket_connect_timeout=CHECK_SECONDS
        ) as broker:
            broker.ping()
    except (redis.RedisError, OSError) as error:
        _log.warning("the broker does not answer: %s", error)
        raise UnwellError("the broker does not answer; jobs are taken in, and begin when it is back") from error
    return "the broker answers"


def check_storage(settings: Settings) -> str:
    """Whether something could be stored, and the disk has room."""
    try:
        store_for(settings).check()
        room = enough_space(settings)
    except (StoreError, OSError) as error:
        _log.warning("nothing can be stored: %s", error)
        raise UnwellError("nothing can be stored") from error
    if not room:
        raise UnwellError("the disk is nearly full: less than DKLBENCH_MIN_FREE_BYTES are free")
    return "there is room"


def say_workers(db: Engine, settings: Settings) -> str:
    """How many workers live."""
    try:
        with reading(db) as session:
            alive = select(func.count()).where(Worker.beat_at > now() - settings.lease_seconds)
            count = session.execute(alive).scalar_one()
    except SQLAlchemyError as error:
        raise UnwellError("the database does not say") from error
    if not count:
        raise UnwellError("no worker is alive: jobs wait until one comes")
    return f"{count} alive"
