"""A worker's own heartbeat: it is in the list of workers while its process lives, with a job or without."""

import logging
import threading
from collections.abc import Callable

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from service import registry
from service.registry import Description
from service.settings import Settings
from workers import hardware

_log = logging.getLogger(__name__)


class Presence:
    """Beats in a thread from `start` to `end`. `on_change` is told when the worker is to drain or to resume."""

    def __init__(
        self, db: Engine, worker: Description, settings: Settings, on_change: Callable[[bool], None] | None = None
    ) -> None:
        self.accepts = True
        """Whether the worker may take jobs."""
        self._db, self._worker, self._settings, self._on_change = db, worker, settings, on_change
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def start(self) -> "Presence":
        self._thread.start()
        return self

    def end(self) -> None:
        """Leave the list: the worker shuts down in good order."""
        self._over.set()
        self._thread.join()
        try:
            registry.leave(self._db, self._worker.name)
        except OperationalError as error:
            _log.warning("cannot leave the list of workers (%s); the worker will be shown as silent", error)

    def _run(self) -> None:
        arrived = False
        while True:
            try:
                if not arrived:
                    registry.arrive(self._db, self._worker)
                    arrived = True
                self._hear(registry.beat(self._db, self._worker, hardware.use(self._settings)))
            except OperationalError as error:
                _log.warning("a heartbeat of this worker got lost: %s", error)
            if self._over.wait(min(self._settings.heartbeat_seconds, 1.0 if not arrived else 10.0)):
                return

    def _hear(self, accepts: bool) -> None:
        if accepts != self.accepts:
            self.accepts = accepts
            _log.info("this worker %s", "takes jobs again" if accepts else "drains: it takes no more jobs")
            if self._on_change:
                self._on_change(accepts)
