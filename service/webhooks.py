"""Webhooks: one signed POST when a job has ended.

The ledger writes a row of `deliveries` in the transaction that ends the job; here it becomes a request, which is
tried again for a day if need be. service/outbound.py sees to it that it goes nowhere it should not.

The form is that of standardwebhooks.com, so receivers check the signature with a library of their language.
"""

import base64
import hashlib
import hmac
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine, select
from standardwebhooks import Webhook

from service.db import clock, reading, writing
from service.moves import TERMINAL
from service.outbound import Network, PostError, post
from service.secret import secret_for
from service.settings import Settings
from service.tables import Delivery, Job

_log = logging.getLogger(__name__)
RETRY_SECONDS = (60, 300, 900, 3600, 3 * 3600, 6 * 3600, 12 * 3600)
"""Pauses after tries that failed; a webhook is given up when the one after the last pause fails, too."""
_AT_ONCE = 8


def deliver_due(db: Engine, settings: Settings, network: Network | None = None) -> int:
    """Try what is due now, some at once; returns how many were tried.

    A try is written down before it is made, with when the next one is due: a process that dies in between loses
    nothing, and of several processes each takes others. So a receiver may get one twice, with the same webhook-id.
    """
    tried = _take(db)
    if not tried:
        return 0
    network = network or Network.public()
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="webhook") as threads:
        list(threads.map(lambda delivery_id: _deliver(db, settings, delivery_id, network), tried))
    return len(tried)


def _take(db: Engine) -> list[str]:
    with writing(db) as session:
        at = clock(session)
        due = select(Delivery).where(Delivery.due_at <= at).order_by(Delivery.due_at).limit(_AT_ONCE)
        taken = session.scalars(due.with_for_update(skip_locked=True)).all()
        for delivery in taken:
            delivery.tries += 1
            delivery.due_at = at + RETRY_SECONDS[min(delivery.tries, len(RETRY_SECONDS)) - 1]
        return [delivery.id for delivery in taken]


def _deliver(db: Engine, settings: Settings, delivery_id: str, network: Network) -> None:
    with reading(db) as session:
        delivery = session.get_one(Delivery, delivery_id)
        job = session.get_one(Job, delivery.job_id)
    if job.status not in TERMINAL:
        return  # resumed this moment: its next end is told
    body = json.dumps(_document(job, settings), separators=(",", ":"))
    error = None
    try:
        post(delivery.url, _signed(settings, job, delivery, body), body.encode(), network)
    except PostError as problem:
        error = str(problem)
        _log.info("webhook %s of job %s, try %d: %s", delivery.id, job.id, delivery.tries, error)
    with writing(db) as session:
        row = session.get_one(Delivery, delivery_id, with_for_update=True)
        row.error = error
        if error is None:
            row.delivered_at, row.due_at = clock(session), None
        elif row.tries > len(RETRY_SECONDS):
            row.due_at = None


def _document(job: Job, settings: Settings) -> dict[str, Any]:
    told = ("id", "kind", "name", "status", "reason", "clean_accuracy", "robust_accuracy", "parent_id", "rerun_of")
    return {
        "type": f"job.{job.status}",
        "timestamp": datetime.fromtimestamp(job.finished_at or 0, UTC).isoformat(timespec="milliseconds"),
        "data": {
            **{name: getattr(job, name) for name in told},
            "url": f"{settings.url.rstrip('/')}/jobs/{job.id}",
        },
    }


def _signed(settings: Settings, job: Job, delivery: Delivery, body: str) -> dict[str, str]:
    at = datetime.now(UTC)
    return {
        "Content-Type": "application/json",
        "User-Agent": "dkl-bench",
        "webhook-id": delivery.id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(webhook_secret(settings, job.key_id)).sign(delivery.id, at, body),
    }


def webhook_secret(settings: Settings, key_id: str | None) -> str:
    """What signs the webhooks of jobs submitted with this key, or without one: "whsec_..."."""
    mine = hmac.digest(secret_for(settings, "webhooks"), (key_id or "no key").encode(), hashlib.sha256)
    return f"whsec_{base64.b64encode(mine).decode()}"
