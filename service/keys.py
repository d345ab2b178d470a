"""API keys: made, shown once, recognised, revoked. Only a digest under the service's secret is stored.

    dkl_0a1b2c3d4e5f_<43 random characters>_<checksum>
        |            |                      |
        looked up    256 bits               tells a typing mistake from a wrong key, and lets scanners find leaks

256 random bits need no slow hash: nobody tries them all.
"""

import hashlib
import hmac
import logging
import re
import secrets
import zlib
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from sqlalchemy import Engine, select, update
from sqlalchemy.exc import OperationalError

from service import audit
from service.callers import Caller
from service.db import clock, now, reading, writing
from service.secret import secret_for
from service.settings import Settings
from service.tables import ApiKey

_log = logging.getLogger(__name__)
KeyScope = Literal["read", "submit", "admin"]
_FORM = re.compile(r"dkl_([0-9a-f]{12})_[A-Za-z0-9_-]{43}_([0-9a-f]{8})", re.ASCII)
_PRINTABLE = r"^[^\x00-\x20\x7f-\xa0]([^\x00-\x1f\x7f-\x9f]*[^\x00-\x20\x7f-\xa0])?$"
"""No control characters, and no space at either end."""
_USE_SECONDS = 60
"""`used_at` is exact to so much: a write per request would be a write too many."""
_NO_DIGEST = "0" * 64


class BadKeyError(Exception):
    """Not a key of this service, or not any more; the message says which, and never repeats the key."""


class UnknownKeyError(ValueError):
    """No key has this id."""


def _printable(name: str) -> str:
    if len(name) > 80 or not re.match(_PRINTABLE, name):
        raise ValueError(
            f"must be 1 to 80 printable characters without a space at either end, found {name[:99]!r}"
        )
    return name


class KeyRequest(BaseModel):
    """A key that an admin asks for."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: Annotated[
        str, AfterValidator(_printable), Field(json_schema_extra={"pattern": _PRINTABLE, "maxLength": 80})
    ]
    """Whose it is, or what for; for people only."""
    scope: KeyScope
    """read: jobs, results and files. submit: also jobs and uploads of its own. admin: everything."""
    max_running: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    """Jobs of this key that run at the same time; further ones wait."""
    max_storage: Annotated[int, Field(ge=0, le=2**62)] | None = None
    """Bytes of stored files that this key may cause."""


def create(db: Engine, settings: Settings, wanted: KeyRequest, *, caller: Caller) -> tuple[ApiKey, str]:
    """A new key's row, and the key itself, which nobody can show again."""
    with writing(db) as session:
        text = _new()
        row = ApiKey(
            id=text.split("_")[1],
            **wanted.model_dump(),
            digest=_digest(settings, text),
            created_at=clock(session),
            created_by=caller.name,
        )
        session.add(row)
        audit.record(session, caller, "key.create", row.id, **wanted.model_dump())
    return row, text


def recognised(db: Engine, settings: Settings, text: str) -> ApiKey:
    """The row of a key that may be used; BadKeyError otherwise."""
    form = _FORM.fullmatch(text)
    if form is None:
        raise BadKeyError("this is not an API key: one reads dkl_, twelve hex digits, _, and 52 more characters")
    if _check(text[:-9]) != form[2]:
        raise BadKeyError("this API key has a typing mistake: its last eight characters do not fit the others")
    row, at = _found(db, form[1])
    # An unknown id is compared too, so that the time it takes does not tell which ids exist.
    fits = hmac.compare_digest(_digest(settings, text), row.digest if row else _NO_DIGEST)
    if row is None or not fits:
        raise BadKeyError("this API key is not one of this service's; ask whoever runs it for one")
    return _used(db, row, at)


def still_good(db: Engine, key_id: str) -> ApiKey:
    """The row of a key that was recognised when its owner signed in; BadKeyError where it was revoked since."""
    row, at = _found(db, key_id)
    if row is None:
        raise BadKeyError("this API key does not exist any more")
    return _used(db, row, at)


def revoke(db: Engine, key_id: str, *, caller: Caller) -> ApiKey:
    """End a key at once. Revoking one again changes nothing."""
    with writing(db) as session:
        row = session.get(ApiKey, key_id, with_for_update=True)
        if row is None:
            raise UnknownKeyError(f"there is no key {key_id!r}; the list of keys has their ids")
        if row.revoked_at is None:
            row.revoked_at = clock(session)
            audit.record(session, caller, "key.revoke", row.id, name=row.name, scope=row.scope)
    return row


def every(db: Engine) -> Sequence[ApiKey]:
    """All keys, usable ones first, the newest first."""
    with reading(db) as session:
        order = (ApiKey.revoked_at.is_not(None), ApiKey.created_at.desc(), ApiKey.id)
        return session.scalars(select(ApiKey).order_by(*order)).all()


def somebody_may(db: Engine, *scopes: KeyScope) -> bool:
    """Whether a usable key has one of these scopes."""
    with reading(db) as session:
        usable = select(ApiKey.id).where(ApiKey.scope.in_(scopes), ApiKey.revoked_at.is_(None))
        return session.scalars(usable.limit(1)).first() is not None


def _found(db: Engine, key_id: str) -> tuple[ApiKey | None, float]:
    """The row, if there is one, and the time."""
    with reading(db) as session:
        found = session.execute(select(ApiKey, now()).where(ApiKey.id == key_id)).one_or_none()
    return (found[0], found[1]) if found else (None, 0.0)


def _used(db: Engine, row: ApiKey, at: float) -> ApiKey:
    if row.revoked_at is not None:
        raise BadKeyError(
            f"the API key {row.name!r} ({row.id}) was revoked; ask whoever runs the service for another"
        )
    if row.used_at is None or row.used_at <= at - _USE_SECONDS:
        try:
            with writing(db) as session:
                session.execute(update(ApiKey).where(ApiKey.id == row.id).values(used_at=at))
        except OperationalError as error:  # a full disk must not keep anybody from reading
            _log.warning("could not note that key %s was used (%s)", row.id, error.orig)
    return row


def _new() -> str:
    body = f"dkl_{secrets.token_hex(6)}_{secrets.token_urlsafe(32)}"
    return f"{body}_{_check(body)}"


def _check(body: str) -> str:
    return f"{zlib.crc32(body.encode()):08x}"


def _digest(settings: Settings, text: str) -> str:
    return hmac.new(secret_for(settings, "api keys"), text.encode(), hashlib.sha256).hexdigest()
