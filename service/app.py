"""create_app(settings): the routes, the errors, and the two tasks that run beside them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.staticfiles import StaticFiles
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError
from starlette.middleware import Middleware

from service import api, jobs, pages
from service.db import connect
from service.headers import SecurityHeaders
from service.problems import HANDLERS, Problem
from service.queue import ring
from service.settings import Settings
from service.settings import settings as process_settings
from service.state import State, state_of
from service.streams import POLL_SECONDS

_log = logging.getLogger(__name__)


def create_app(settings: Settings | None = None) -> FastAPI:
    """The web application. Expects a migrated database: `dklbench up` and `dklbench migrate` see to it."""
    settings = settings or process_settings()
    state = State(settings, connect(settings.database))
    app = FastAPI(
        title="dkl-bench",
        version="0.1.0",
        description="Adversarial robustness benchmarking: train, attack, rank.",
        lifespan=_lifespan,
        docs_url=None,  # its page loads scripts from a CDN; service/pages.py has one of our own
        redoc_url=None,
        openapi_url="/api/openapi.json",
        middleware=[Middleware(SecurityHeaders)],
    )
    app.state.dkl = state
    app.include_router(api.router)
    app.include_router(pages.router)
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "web" / "static"), name="static")
    app.get("/healthz", responses={503: {"model": Problem}})(_healthz)
    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)
    return app


def _healthz(request: Request) -> dict[str, str]:
    """Whether the database answers."""
    with state_of(request).db.connect() as connection:
        connection.execute(text("SELECT 1"))
    return {"status": "ok"}


# --- beside the routes ------------------------------------------------------------------------------------


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    state: State = app.state.dkl
    stop = asyncio.Event()
    sweep = partial(_sweep, state.settings, state.db)
    tasks = [
        asyncio.create_task(_repeat(state.streams.look, POLL_SECONDS, stop)),
        asyncio.create_task(_repeat(sweep, state.settings.sweep_seconds, stop)),
    ]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*tasks)
        state.db.dispose()


async def _repeat(work: Callable[[], Awaitable[None]], seconds: float, stop: asyncio.Event) -> None:
    while not stop.is_set():
        try:
            await work()
        except SQLAlchemyError as error:
            _log.warning("the database does not answer (%s); trying again in %g s", error, seconds)
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), seconds)


async def _sweep(settings: Settings, db: Engine) -> None:
    """Heal what dead workers and lost messages leave behind."""
    for job_id in await run_in_threadpool(jobs.requeue_lost, db, max_losses=settings.max_losses):
        _log.warning("took back job %s: its worker went silent", job_id)
    await run_in_threadpool(ring, db, settings)
