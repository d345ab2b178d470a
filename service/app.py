"""create_app(settings): the routes, the errors, and the tasks that run beside them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi.staticfiles import StaticFiles
from prometheus_client import Counter
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from starlette.middleware import Middleware
from starlette.middleware.gzip import DEFAULT_EXCLUDED_CONTENT_TYPES, GZipMiddleware

from service import (
    api,
    api_comparisons,
    api_distillation,
    api_exports,
    api_health,
    api_keys,
    api_reported,
    api_studies,
    api_uploads,
    api_verifications,
    api_webhooks,
    api_workers,
    healing,
    health,
    metrics,
)
from service.collect import collect_alone
from service.db import connect
from service.guards import BodyLimit, HostCheck
from service.headers import SecurityHeaders
from service.observed import Observed
from service.openapi import Documented
from service.problems import HANDLERS, answer
from service.queue import ring
from service.settings import Settings
from service.settings import settings as process_settings
from service.state import State
from service.streams import POLL_SECONDS
from service.web import (
    api_page,
    compare_page,
    distillation_page,
    docs_page,
    entry_page,
    job_page,
    jobs_page,
    keys_page,
    leaderboard_page,
    pictures,
    study_page,
    submit_page,
    workers_page,
)
from service.webhooks import deliver_due

MAX_BODY_BYTES = 2**20
_COLLECT_SECONDS = 3600.0
_COLLECT_FIRST_SECONDS = 60.0
"""After the start, which has enough to do without it."""
_DELIVER_SECONDS = 2.0
_SENT_AS_IT_IS = (*DEFAULT_EXCLUDED_CONTENT_TYPES, "application/octet-stream")
"""Not compressed: event streams, so that nothing waits in a buffer, and what downloads resume."""
_log = logging.getLogger(__name__)
_INTERFACES = (
    *(api, api_comparisons, api_uploads, api_verifications, api_exports, api_reported, api_keys, api_webhooks),
    *(api_workers, api_distillation, api_studies, api_health, metrics),
)
_PAGES = (
    *(leaderboard_page, entry_page, pictures, compare_page, distillation_page, docs_page, jobs_page, job_page),
    *(submit_page, workers_page, keys_page, api_page, study_page),
)


def create_app(settings: Settings | None = None) -> FastAPI:
    """The web application. Expects a migrated database: `dklbench up` and `dklbench migrate` see to it."""
    settings = settings or process_settings()
    state = State(settings, connect(settings.database))
    observations = metrics.Metrics(settings, state.db)
    app = Documented(
        title="dkl-bench",
        version=version("dkl-bench"),
        description="Adversarial robustness benchmarking: train, attack, rank.",
        lifespan=_lifespan,
        docs_url=None,  # its page loads scripts from a CDN; service/web/api_page.py has one of our own
        redoc_url=None,
        openapi_url=None,  # service/web/api_page.py serves it, to those who may see it
        middleware=[
            Middleware(Observed, requests=observations.requests),
            Middleware(GZipMiddleware, compresslevel=5, exclude_content_types=_SENT_AS_IT_IS),
            Middleware(SecurityHeaders),
            Middleware(HostCheck, settings=settings, answer=answer),
            Middleware(BodyLimit, limit=MAX_BODY_BYTES, unlimited="/api/v1/uploads/", answer=answer),
        ],
    )
    app.state.dkl = state
    app.state.metrics = observations
    app.state.checks = health.Checks(settings, state.db)
    # As they are: include_router would make every route once more for each application, at its first request.
    app.router.routes.extend(route for routes in (*_INTERFACES, *_PAGES) for route in routes.router.routes)
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "web" / "static"), name="static")
    for kind, handler in (HANDLERS | api_uploads.HANDLERS).items():
        app.add_exception_handler(kind, handler)
    return app


# --- beside the routes ------------------------------------------------------------------------------------


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    state: State = app.state.dkl
    stop = asyncio.Event()
    sweep = partial(_sweep, state.settings, state.db, app.state.metrics.requests.leases_expired)
    tasks = [
        asyncio.create_task(_repeat(state.streams.look, POLL_SECONDS, stop)),
        asyncio.create_task(_repeat(sweep, state.settings.sweep_seconds, stop)),
        asyncio.create_task(_repeat(partial(_deliver, state), _DELIVER_SECONDS, stop)),
        asyncio.create_task(
            _repeat(partial(_collect, state, stop), _COLLECT_SECONDS, stop, first=_COLLECT_FIRST_SECONDS)
        ),
    ]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*tasks)
        state.db.dispose()


async def _repeat(
    work: Callable[[], Awaitable[None]], seconds: float, stop: asyncio.Event, first: float = 0.0
) -> None:
    await _pause(first, stop)
    while not stop.is_set():
        try:
            await work()
        except SQLAlchemyError as error:
            _log.warning("the database does not answer (%s); trying again in %g s", error, seconds)
        except Exception:  # of one round; the next ones must come all the same
            _log.exception("work beside the routes failed; trying again in %g s", seconds)
        await _pause(seconds, stop)


async def _pause(seconds: float, stop: asyncio.Event) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)


async def _deliver(state: State) -> None:
    """Send the webhooks that are due."""
    await run_in_threadpool(deliver_due, state.db, state.settings)


async def _sweep(settings: Settings, db: Engine, expired: Counter) -> None:
    """Heal what dead workers and lost messages leave behind."""
    for job_id in await run_in_threadpool(healing.requeue_lost, db, max_losses=settings.max_losses):
        expired.labels("silent").inc()
        _log.warning("took back job %s: its worker went silent", job_id)
    limits = {"stall_seconds": settings.stall_seconds, "max_losses": settings.max_losses}
    for job_id in await run_in_threadpool(healing.requeue_stalled, db, **limits):
        expired.labels("stalled").inc()
        _log.warning("took back job %s: it made no progress", job_id)
    await run_in_threadpool(ring, db, settings)


async def _collect(state: State, stop: asyncio.Event) -> None:
    """Remove what nothing needs any more, and what interrupted work has left."""
    await run_in_threadpool(collect_alone, state.db, state.artifacts, state.settings, stop.is_set)
