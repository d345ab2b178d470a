"""The Celery application: its configuration and its one task. Start one per GPU: celery -A workers.app worker.

Every job runs in a fresh spawned process, so its CUDA context and memory end with it. Delivery is at least once;
the ledger's claim makes it exactly one run. Run with REMAP_SIGTERM=SIGQUIT, so that a stopped container gives its
job back instead of finishing it.
"""

from celery import Celery

from service.db import connect
from service.queue import QUEUE, TASK
from service.settings import settings

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
    worker_hijack_root_logger=False,
    task_default_queue=QUEUE,
)


@app.task(name=TASK)
def run_job(job_id: str) -> None:
    """Run one job. The message is only its id; everything else is in the ledger."""
    from workers import run

    run.run_job(job_id, settings=settings(), db=connect(settings().database), halt=run.halt_on_signals())
