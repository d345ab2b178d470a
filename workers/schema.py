"""The database's schema as a worker needs it."""

from sqlalchemy import Engine

from service.db import SchemaError, require_schema
from workers.patience import patiently


def require_own(db: Engine) -> None:
    """Wait for the database; SystemExit where it is of another version than this worker, which then takes no job,
    and whose supervisor tries again."""
    try:
        patiently(lambda: require_schema(db))
    except SchemaError as error:
        raise SystemExit(str(error)) from None
