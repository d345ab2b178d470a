"""run_job(): claim a job, run it with the library, write down what it says. The same for Celery and embedded."""

import logging
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from dkl.events import Finished, Progress
from dkl.protocols import Checkpoint, JobResult
from service import jobs
from service.artifacts import Artifacts
from service.queue import ring
from service.settings import Settings

_log = logging.getLogger(__name__)
_PROGRESS_SECONDS = 0.5
_LEFT = {"train": "model.safetensors", "evaluate": "evidence.safetensors"}
"""The file that a job of each kind leaves; one of corruptions leaves its result alone."""
_T = TypeVar("_T")


def worker_name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def halt_on_signals() -> threading.Event:
    """An event that SIGTERM sets: the running job stops after its current batch, checkpoints and is given back.

    Celery's parent process passes a shutdown on to the child as SIGQUIT where REMAP_SIGTERM says so.
    """
    halt = threading.Event()
    for sign in (signal.SIGTERM, signal.SIGQUIT):
        signal.signal(sign, lambda *_: halt.set())
    return halt


def run_job(job_id: str, *, settings: Settings, db: Engine, halt: threading.Event) -> None:
    """Run the job to its end, or until it is cancelled, lost to another worker, or `halt` is set.

    A message about a job that is not ready, running elsewhere or over is dropped here: the claim gets nothing.
    """
    take = partial(jobs.claim, db, job_id, worker=worker_name(), lease_seconds=settings.lease_seconds)
    claim = _patiently(take)
    if claim is None:
        _log.info("job %s is not to be had; dropping the message", job_id)
        return
    _log.info("running job %s, attempt %d", job_id, claim.attempt)
    try:
        with _Heart(db, claim, settings) as heart:
            _run_claimed(claim, settings, db, stop=lambda: halt.is_set() or heart.stop.is_set())
    except jobs.ClaimLostError as error:
        _log.warning("stopping job %s: %s", job_id, error)
    _patiently(partial(ring, db, settings))


def _run_claimed(claim: jobs.Claim, settings: Settings, db: Engine, stop: Callable[[], bool]) -> None:
    workdir = settings.workdir(claim.job_id)
    try:
        finished = _follow(claim, workdir, settings, db, stop)
        if finished and (left := _LEFT.get(finished.result.kind)):  # the file before the result that names it
            Artifacts(settings.artifacts_dir).put(workdir / left)
    except jobs.ClaimLostError:
        raise
    except (ValueError, ArithmeticError, MemoryError) as error:  # what the library explains itself
        _log.warning("job %s failed: %s", claim.job_id, error)
        end = partial(jobs.fail, db, claim, str(error))
    except Exception as error:
        _log.exception("job %s failed", claim.job_id)
        end = partial(jobs.fail, db, claim, f"{type(error).__name__}: {error}; the worker's log has the traceback")
    else:
        end = partial(jobs.finish, db, claim, finished) if finished else partial(jobs.stopped, db, claim)
    _patiently(end)
    if _patiently(partial(jobs.get, db, claim.job_id)).status in jobs.TERMINAL:
        shutil.rmtree(workdir, ignore_errors=True)  # all that counts is in the ledger and the artifacts now


def _follow(
    claim: jobs.Claim, workdir: Path, settings: Settings, db: Engine, stop: Callable[[], bool]
) -> Finished | None:
    """Run the recipe and write down its events; None where it was stopped before the end."""
    from dkl import engine  # imports torch

    def fetch(_: JobResult | Checkpoint) -> Path:
        assert claim.checkpoint is not None  # the ledger knows it: of an earlier job, or named in the recipe
        return Artifacts(settings.artifacts_dir).path(claim.checkpoint)

    device = engine.pick_device(settings.device)
    events = engine.run(claim.recipe, workdir, device=device, data_dir=settings.datasets_dir, fetch=fetch)
    quiet_until = 0.0
    with closing(events):
        for event in events:
            if isinstance(event, Finished):
                return event
            skip = isinstance(event, Progress) and time.monotonic() < quiet_until
            if isinstance(event, Progress) and not skip:
                quiet_until = time.monotonic() + _PROGRESS_SECONDS
            go_on = skip or _patiently(partial(jobs.append, db, claim, event))
            if stop() or not go_on:
                return None
    raise AssertionError("the engine ended without Finished")


class _Heart:
    """Beats while the job runs; `stop` is set when the job is to be cancelled or belongs to another worker."""

    def __init__(self, db: Engine, claim: jobs.Claim, settings: Settings) -> None:
        self.stop = threading.Event()
        self._over = threading.Event()
        self._db, self._claim, self._settings = db, claim, settings
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> "_Heart":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._over.wait(self._settings.heartbeat_seconds):
            try:
                lease = self._settings.lease_seconds
                if not jobs.heartbeat(self._db, self._claim, lease_seconds=lease):
                    self.stop.set()
            except jobs.ClaimLostError:
                self.stop.set()
                return
            except OperationalError as error:
                _log.warning("a heartbeat of job %s got lost: %s", self._claim.job_id, error)


def _patiently(call: Callable[[], _T]) -> _T:
    """The call's result; while the database is away, wait for it. A claim may be lost meanwhile, no result is."""
    delay = 0.5
    while True:
        try:
            return call()
        except OperationalError as error:
            _log.warning("the database does not answer (%s); trying again in %g s", error, delay)
            time.sleep(delay)
            delay = min(delay * 2, 30)
