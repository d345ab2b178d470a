"""The embedded worker, `python -m workers`: polls the ledger and runs one job after the other. Needs no broker."""

import argparse
import logging
import os
import signal
import threading
import time

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from service import jobs
from service.db import connect
from service.settings import settings
from workers.run import halt_on_signals, run_job

_IDLE_SECONDS = 0.5
_log = logging.getLogger(__name__)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m workers", description=__doc__)
    parser.add_argument("--parent", type=int, help="stop in good order when the process with this id is gone")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s worker %(process)d %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole terminal; the parent sends SIGTERM
    halt = halt_on_signals()
    if arguments.parent:
        threading.Thread(target=_halt_with, args=(arguments.parent, halt), daemon=True).start()
    db = connect(settings().database)
    while not halt.is_set():
        if (job_id := _next(db)) is None:
            halt.wait(_IDLE_SECONDS)
        else:
            run_job(job_id, settings=settings(), db=db, halt=halt)


def _next(db: Engine) -> str | None:
    try:
        return jobs.next_ready(db)
    except OperationalError as error:
        _log.warning("cannot read the ledger: %s", error)
        return None


def _halt_with(parent: int, halt: threading.Event) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    halt.set()


main()
