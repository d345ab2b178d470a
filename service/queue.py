"""How workers learn that there is something to do. A message is only a job id, and losing one is harmless.

It is a knock at the door of a queue: whoever hears it asks the ledger which job to take.
"""

import logging
from functools import cache
from typing import Protocol

from celery import Celery
from kombu.exceptions import OperationalError
from sqlalchemy import Engine

from service import healing
from service.settings import Settings

TASK = "dklbench.run_job"
_log = logging.getLogger(__name__)


class Queue(Protocol):
    def send(self, job_id: str, queue: str) -> None:
        """Tell the workers of `queue` that a job is ready."""


class LedgerQueue:
    """Embedded workers poll the ledger: there is nobody to tell."""

    def send(self, job_id: str, queue: str) -> None:
        return


class CeleryQueue:
    """Rings the Celery workers through Redis."""

    def __init__(self, broker_url: str) -> None:
        self._app = Celery("dklbench", broker=broker_url, set_as_current=False)
        self._app.conf.update(
            broker_pool_acquire_timeout=10,
            broker_transport_options={"socket_timeout": 10, "socket_connect_timeout": 5},
            task_ignore_result=True,
        )

    def send(self, job_id: str, queue: str) -> None:
        self._app.send_task(TASK, args=[job_id], queue=queue, retry=False)

    def close(self) -> None:
        self._app.close()


@cache
def queue_for(settings: Settings) -> Queue:
    return CeleryQueue(settings.broker_url) if settings.broker_url else LedgerQueue()


def ring(db: Engine, settings: Settings) -> None:
    """Announce every ready job that the workers have not heard of. What cannot be sent now is sent later."""
    queue = queue_for(settings)
    messages = healing.take_unsent(
        db, resend_seconds=settings.resend_seconds, lease_seconds=settings.lease_seconds
    )
    for job_id, name in messages:
        try:
            queue.send(job_id, name)
        except (OperationalError, OSError) as error:
            _log.warning("the broker did not take job %s (%s); it will be told again", job_id, error)
