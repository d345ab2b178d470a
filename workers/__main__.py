"""The embedded worker, `python -m workers`: polls the ledger and runs one job after the other. Needs no broker."""

import argparse
import logging
import os
import signal
import threading
import time

from sqlalchemy.exc import OperationalError

from service import healing, logs
from service.db import connect
from service.settings import settings
from workers.hardware import describe
from workers.patience import patiently
from workers.presence import Presence
from workers.run import clear_abandoned, halt_on_signals, run_next, worker_name
from workers.schema import require_own

_IDLE_SECONDS = 0.5
_log = logging.getLogger(__name__)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m workers", description=__doc__)
    parser.add_argument("--parent", type=int, help="stop in good order when the process with this id is gone")
    parser.add_argument("--name", default=worker_name(), help="this worker's, which no other living one has")
    arguments = parser.parse_args()
    logs.configure(settings())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole terminal; the parent sends SIGTERM
    halt = halt_on_signals()
    if arguments.parent:
        threading.Thread(target=_halt_with, args=(arguments.parent, halt), daemon=True).start()
    work(arguments.name, halt)


def work(name: str, halt: threading.Event) -> None:
    """Run jobs until `halt` is set."""
    own = settings()
    db = connect(own.database)
    require_own(db)
    worker = describe(name, own)
    patiently(lambda: healing.requeue_orphaned(db, name, max_losses=own.max_losses))
    clear_abandoned(db, own)
    presence = Presence(db, worker, own).start()
    try:
        while not halt.is_set():
            try:
                busy = presence.accepts and run_next(worker=worker, settings=own, db=db, halt=halt)
            except OperationalError as error:
                _log.warning("cannot read the ledger: %s", error)
                busy = False
            if not busy:
                halt.wait(_IDLE_SECONDS)
    finally:
        presence.end()


def _halt_with(parent: int, halt: threading.Event) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    halt.set()


if __name__ == "__main__":
    main()
