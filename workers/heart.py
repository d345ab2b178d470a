"""The heartbeat of a claim, and the end of a process that does not leave a job that it has lost."""

import logging
import os
import signal
import threading
import time

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from service import claims
from service.settings import Settings

_log = logging.getLogger(__name__)


class Heart:
    """Beats while the job runs; `stop` is set when the job is to be canceled or belongs to another worker.

    A thread beats although the job hangs. So when the job has not ended `grace_seconds` after `stop`, the whole
    process is killed: that alone frees the GPU, and whoever started the worker starts another.
    """

    def __init__(self, db: Engine, claim: claims.Claim, settings: Settings) -> None:
        self.stop = threading.Event()
        self._over = threading.Event()
        self._db, self._claim, self._settings = db, claim, settings
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heart":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        stopped_at: float | None = None
        has_claim = True
        while not self._over.wait(self._pause(stopped_at)):
            if has_claim:
                has_claim = self._beat()
            if self.stop.is_set() and stopped_at is None:
                stopped_at = time.monotonic()
            if stopped_at is not None and time.monotonic() - stopped_at >= self._settings.grace_seconds:
                _log.error("job %s does not stop; killing this process to free its GPU", self._claim.job_id)
                os.kill(os.getpid(), signal.SIGKILL)

    def _pause(self, stopped_at: float | None) -> float:
        beat = self._settings.heartbeat_seconds
        return beat if stopped_at is None else min(beat, self._settings.grace_seconds / 4)

    def _beat(self) -> bool:
        """Renew the lease; whether there is still one."""
        try:
            if not claims.heartbeat(self._db, self._claim, lease_seconds=self._settings.lease_seconds):
                self.stop.set()
        except claims.ClaimLostError:
            self.stop.set()
            return False
        except OperationalError as error:
            _log.warning("a heartbeat of job %s got lost: %s", self._claim.job_id, error)
        return True
