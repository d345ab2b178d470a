"""create_app(settings): the routes, the errors, and the two tasks that run beside them."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.staticfiles import StaticFiles
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from service import api, jobs, pages
from service.db import connect
from service.problems import HANDLERS, Problem
from service.queue import ring
from service.settings import Settings
from service.settings import settings as process_settings
from service.state import State, state_of

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
        docs_url="/api/docs",
        openapi_url="/api/openapi.json",
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
    tasks = [asyncio.create_task(state.streams.poll()), asyncio.create_task(_sweep(state.settings, state.db))]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        state.db.dispose()


async def _sweep(settings: Settings, db: Engine) -> None:
    """Heal what dead workers and lost messages leave behind, for as long as the service runs."""
    while True:
        try:
            for job_id in await run_in_threadpool(jobs.requeue_lost, db, max_losses=settings.max_losses):
                _log.warning("took back job %s: its worker went silent", job_id)
            await run_in_threadpool(ring, db, settings)
        except SQLAlchemyError as error:
            _log.warning("cannot sweep the ledger (%s); trying again in %g s", error, settings.sweep_seconds)
        await asyncio.sleep(settings.sweep_seconds)
