"""Waiting for a database or a store that is away. A claim may be lost meanwhile, no result is."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import OperationalError

from service.artifacts import StoreError

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


def patiently(call: Callable[[], _T]) -> _T:
    """The call's result, as soon as database and store let it through."""
    delay = 0.5
    while True:
        try:
            return call()
        except (OperationalError, StoreError) as error:
            _log.warning("%s; trying again in %g s", error, delay)
            time.sleep(delay)
            delay = min(delay * 2, 30)
