"""The Celery application: its configuration and its one task. Start one per GPU: celery -A workers.app worker.

Every job runs in a fresh spawned process, so its CUDA context and memory end with it. Delivery is at least once;
the ledger's claim makes it exactly one run. Run with REMAP_SIGTERM=SIGQUIT, so that a stopped container gives its
job back instead of finishing it.
"""

import os
import threading
from typing import Any

from celery import Celery, signals
from kombu import Queue

from service import healing, logs, registry
from service.db import connect
from service.queue import TASK
from service.settings import settings
from workers.hardware import describe
from workers.patience import patiently
from workers.presence import Presence
from workers.run import clear_abandoned, halt_on_signals, run_next
from workers.schema import require_own

app = Celery("dklbench", broker=settings().broker_url)
app.conf.update(
    # A message is acknowledged when its job is over, and comes back if the process dies.
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_acks_on_failure=True,
    task_acks_on_timeout=True,
    worker_prefetch_multiplier=1,
    task_ignore_result=True,
    task_serializer="json",
    accept_content=["json"],
    # A forked child cannot use CUDA; importing torch in a spawned one takes longer than the default 4 s.
    worker_pool="prefork",
    worker_concurrency=1,
    worker_pool_start_method="spawn",
    worker_max_tasks_per_child=1,
    worker_proc_alive_timeout=300,
    # Redis takes a message back after this time, even from a worker that is still at it.
    broker_transport_options={
        "visibility_timeout": 7 * 86400,
        "socket_timeout": 30,
        "socket_keepalive": True,
    },
    broker_connection_retry_on_startup=True,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    # At SIGTERM the child learns of the shutdown when the soft one ends; from then on it may take its time.
    worker_soft_shutdown_timeout=1,
    worker_send_task_events=False,
    task_queues=[Queue(name) for name in settings().queues],
    task_default_queue=settings().queues[0],
)


_present: list[Presence] = []
"""Of this process, where it is a worker's main one."""


@signals.setup_logging.connect
def _configure_logs(**_: object) -> None:
    logs.configure(settings())


@signals.worker_init.connect
def _require_schema(**_: object) -> None:
    db = connect(settings().database)
    try:
        require_own(db)  # by SystemExit: an Exception Celery would log, and go on
    finally:
        db.dispose()


@signals.worker_ready.connect
def _arrive(sender: Any, **_: object) -> None:
    """Enter the list of workers; while it drains, the worker does not listen to its queues."""
    own, node = settings(), sender.hostname

    def listen(accepts: bool) -> None:
        change = app.control.add_consumer if accepts else app.control.cancel_consumer
        for queue in own.queues:
            change(queue, destination=[node])

    worker, db = describe(_name(node, os.getpid()), own), connect(own.database)
    threading.Thread(target=clear_abandoned, args=(db, own), daemon=True).start()
    _present.append(Presence(db, worker, own, on_change=listen).start())


@signals.worker_shutdown.connect
def _leave(**_: object) -> None:
    for presence in _present:
        presence.end()


@app.task(name=TASK, bind=True)
def run_job(self: Any, job_id: str) -> None:
    """Look into the ledger for something to do. The message is only a knock; everything else is in the ledger."""
    own = settings()
    db = connect(own.database)
    worker = describe(_name(self.request.hostname, os.getppid()), own)
    # A worker has one child at a time: what an earlier one held is held by nobody.
    patiently(lambda: healing.requeue_orphaned(db, worker.name, max_losses=own.max_losses))
    if not patiently(lambda: registry.is_draining(db, worker.name)):
        run_next(worker=worker, settings=own, db=db, halt=halt_on_signals())


def _name(node: str, main_pid: int) -> str:
    """Two workers that somebody started under the same node name must not be taken for one."""
    return f"{node}/{main_pid}"
