"""GET /metrics, for Prometheus: the ledger as it is now, and this process's own requests.

What the ledger tells is read from the database when it is asked for, so several processes say the same and a
restart loses nothing. It is kept for a few seconds: asking often costs no more.
"""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from sqlalchemy import ColumnElement, Engine, Row, case, func, select
from sqlalchemy.orm import Session

from service.access import needs
from service.db import clock, now, reading
from service.moves import TERMINAL
from service.problems import ANSWERS
from service.settings import Settings
from service.space import free_bytes
from service.tables import STATUSES, Artifact, Delivery, Job, Seat, Upload, Worker

router = APIRouter()
_FRESH_SECONDS = 10.0
_ALIVE_SECONDS = 120
"""A worker that was silent for longer says nothing about its GPUs any more."""
_JOB_SECONDS = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 86400, 3 * 86400)
_REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_GIB = 2**30


class Requests:
    """What this process counts itself."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "dklbench_http_request_seconds",
            "Until the answer began, by route and status",
            ("method", "route", "status"),
            buckets=_REQUEST_SECONDS,
            registry=registry,
        )
        self.leases_expired = Counter(
            "dklbench_leases_expired",
            "Jobs that this process took back from a worker: silent, or without progress",
            ("why",),
            registry=registry,
        )
        for why in ("silent", "stalled"):
            self.leases_expired.labels(why)

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        method = method if method in _METHODS else "other"
        self._seconds.labels(method, route, str(status)).observe(seconds)


class Metrics:
    """Everything that /metrics says; `create_app` has one."""

    def __init__(self, settings: Settings, db: Engine) -> None:
        self._registry = CollectorRegistry()
        self.requests = Requests(self._registry)
        ProcessCollector(registry=self._registry)
        self._registry.register(_Ledger(settings, db))

    def text(self) -> bytes:
        return generate_latest(self._registry)


@router.get(
    "/metrics",
    dependencies=[needs("read")],
    response_class=PlainTextResponse,
    responses=ANSWERS | {200: {"content": {"text/plain": {}}, "description": "In the text format of Prometheus"}},
)
def metrics(request: Request) -> Response:
    """For Prometheus: queues, waiting and running times, workers, GPUs, storage, webhooks, and this process."""
    mine: Metrics = request.app.state.metrics
    return Response(mine.text(), media_type=CONTENT_TYPE_LATEST)


# --- the ledger -------------------------------------------------------------------------------------------


class _Ledger(Collector):
    def __init__(self, settings: Settings, db: Engine) -> None:
        self._settings = settings
        self._db = db
        self._lock = threading.Lock()
        self._known: list[Metric] = []
        self._read_at = float("-inf")

    def describe(self) -> list[Metric]:
        return []  # or registering this would ask the database

    def collect(self) -> list[Metric]:
        with self._lock:
            if time.monotonic() - self._read_at > _FRESH_SECONDS:
                self._known = list(self._read())
                self._read_at = time.monotonic()
            return self._known

    def _read(self) -> Iterator[Metric]:
        with reading(self._db) as session:
            yield from _of_jobs(session)
            yield from _of_queues(session)
            yield from _of_workers(session, self._settings)
            yield from _of_files(session)
            yield from _of_webhooks(session)
        yield _gauge("dklbench_disk_free_bytes", "Of the disk under data_dir", free_bytes(self._settings))


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(name, about, value=value)


def _gauges(name: str, about: str, labels: Sequence[str], values: Mapping[Any, float]) -> Metric:
    family = GaugeMetricFamily(name, about, labels=labels)
    for label, value in values.items():
        family.add_metric(label, value)
    return family


def _of_jobs(session: Session) -> Iterator[Metric]:
    """One pass over all jobs: numbers, claims, and how long they waited and took."""
    waited, took = Job.started_at - Job.created_at, Job.finished_at - Job.started_at
    columns = [*_histogram("waited", waited), *_histogram("took", took)]
    groups: Sequence[Row[Any]] = session.execute(
        select(
            Job.queue,
            Job.kind,
            Job.status,
            func.count().label("jobs"),
            func.sum(Job.attempt).label("claims"),
            func.sum(Job.losses).label("losses"),
            *columns,
        ).group_by(Job.queue, Job.kind, Job.status)
    ).all()
    label = ("queue", "kind", "status")
    counts = {(g.queue, g.kind, status): 0.0 for g in groups for status in STATUSES}
    counts |= {(g.queue, g.kind, g.status): float(g.jobs) for g in groups}
    yield _gauges("dklbench_jobs", "Jobs in the ledger", label, counts)
    losses = {(g.queue, g.kind, g.status): float(g.losses) for g in groups if g.losses}
    yield _gauges("dklbench_job_losses", "Workers that jobs lost since they last got any further", label, losses)
    kinds: dict[tuple[str, ...], list[Row[Any]]] = {}
    for group in groups:
        kinds.setdefault((group.queue, group.kind), []).append(group)
    claims = CounterMetricFamily("dklbench_claims", "How often workers have taken jobs", labels=label[:2])
    for kind, rows in kinds.items():
        claims.add_metric(kind, sum(row.claims for row in rows))
    yield claims
    yield _histograms(
        "dklbench_job_wait_seconds", "From submission to the first claim", label[:2], "waited", kinds
    )
    ends = {(g.queue, g.kind, g.status): [g] for g in groups if g.status in TERMINAL}
    yield _histograms("dklbench_job_run_seconds", "From the first claim to the end", label, "took", ends)


def _histogram(name: str, seconds: ColumnElement[float | None]) -> Iterator[ColumnElement[Any]]:
    yield func.count(seconds).label(f"{name}_count")
    yield func.coalesce(func.sum(seconds), 0).label(f"{name}_sum")
    for bound in _JOB_SECONDS:
        yield func.sum(case((seconds <= bound, 1), else_=0)).label(f"{name}_{bound}")


def _histograms(
    name: str, about: str, labels: Sequence[str], column: str, groups: Mapping[Any, Sequence[Row[Any]]]
) -> Metric:
    family = HistogramMetricFamily(name, about, labels=labels)
    for label, rows in groups.items():
        count, total, *buckets = (
            float(sum(row._mapping[f"{column}_{part}"] for row in rows))
            for part in ("count", "sum", *_JOB_SECONDS)
        )
        bounds = [f"{bound:.1f}" for bound in _JOB_SECONDS] + ["+Inf"]
        family.add_metric(label, list(zip(bounds, [*buckets, count], strict=True)), sum_value=total)
    return family


def _of_queues(session: Session) -> Iterator[Metric]:
    queued = select(Job.queue, func.count(), now() - func.min(Job.created_at)).where(Job.status == "queued")
    rows = session.execute(queued.group_by(Job.queue)).all()
    label = ("queue",)
    depths = {(queue,): float(count) for queue, count, _ in rows}
    yield _gauges("dklbench_queue_depth", "Jobs that wait", label, depths)
    ages = {(queue,): float(age) for queue, _, age in rows}
    yield _gauges("dklbench_queue_oldest_seconds", "Age of the job that has waited longest", label, ages)
    seats = session.execute(
        select(func.count(), func.coalesce(func.sum(case((Seat.lease_until < now(), 1), else_=0)), 0))
    ).one()
    yield _gauge("dklbench_seats", "Claims that workers hold now", seats[0])
    yield _gauge("dklbench_seats_expired", "Of them, those whose worker is silent", seats[1])


def _of_workers(session: Session, settings: Settings) -> Iterator[Metric]:
    at = clock(session)
    workers = session.scalars(select(Worker).where(Worker.beat_at > at - _ALIVE_SECONDS)).all()
    numbers: dict[tuple[str, ...], float] = {}
    for worker in workers:
        if worker.beat_at > at - settings.lease_seconds:
            for queue in worker.queues:
                state = (queue, "draining" if worker.draining else "live")
                numbers[state] = numbers.get(state, 0) + 1
    yield _gauges("dklbench_workers", "Workers that beat within their lease", ("queue", "state"), numbers)
    use = {(w.name,): w.gpu_use for w in workers if w.gpu_use is not None}
    yield _gauges("dklbench_worker_gpu_use_ratio", "Mean use of a worker's GPUs", ("worker",), use)
    used = {(w.name,): w.gpu_memory_used * _GIB for w in workers if w.gpu_memory_used is not None}
    yield _gauges("dklbench_worker_gpu_memory_used_bytes", "In use on a worker's GPUs", ("worker",), used)
    memory = {(w.name,): w.gpu_memory * w.gpus * _GIB for w in workers if w.gpus}
    about = "A worker's GPUs have, counted by the smallest"
    yield _gauges("dklbench_worker_gpu_memory_bytes", about, ("worker",), memory)


def _of_files(session: Session) -> Iterator[Metric]:
    size = func.coalesce(func.sum(Artifact.size), 0)
    number, stored = session.execute(select(func.count(), size).select_from(Artifact)).one()
    yield _gauge("dklbench_stored_files", "Files in the store", number)
    yield _gauge("dklbench_stored_bytes", "Their size", float(stored))
    announced = func.coalesce(func.sum(Upload.size), 0)
    under_way = select(func.count(), announced).where(Upload.finished_at.is_(None))
    number, announced_bytes = session.execute(under_way).one()
    yield _gauge("dklbench_uploads", "Uploads under way", number)
    yield _gauge("dklbench_uploads_bytes", "Their announced size", float(announced_bytes))


def _of_webhooks(session: Session) -> Iterator[Metric]:
    state = case(
        (Delivery.delivered_at.is_not(None), "delivered"),
        (Delivery.due_at.is_(None), "given up"),
        (Delivery.due_at <= now(), "due"),
        else_="later",
    ).label("state")
    found = {(name,): float(count) for name, count in session.execute(select(state, func.count()).group_by(state))}
    every = {(name,): 0.0 for name in ("due", "later", "delivered", "given up")}
    yield _gauges("dklbench_webhooks", "Webhooks by what has become of them", ("state",), every | found)
