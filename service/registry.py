"""The workers: what each of them is, whether it lives, and whether it takes anything more."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from sqlalchemy import Engine, delete, select

from service import audit
from service.callers import Caller
from service.db import clock, reading, writing
from service.tables import Worker
from service.waiting import Offer

FORGET_SECONDS = 7 * 86400
"""A worker that was silent for so long is not listed any more."""


class UnknownWorkerError(LookupError):
    """No worker has this name."""


@dataclass(frozen=True)
class Description:
    """A worker as it presents itself."""

    name: str
    """Of one process at a time; who comes back under the same name has died before."""
    host: str
    pid: int
    device: str
    gpus: int
    gpu_memory: float
    processes: int
    versions: dict[str, str]
    queues: tuple[str, ...]
    plugins: dict[str, str] = field(default_factory=dict)
    """Package and version by "model:NAME" or "objective:NAME"."""

    @property
    def offer(self) -> Offer:
        return Offer(self.queues, self.gpus, self.gpu_memory, self.processes, tuple(self.plugins))


@dataclass(frozen=True)
class Use:
    """Of the worker's GPUs, now; absent without."""

    fraction: float | None = None
    memory: float | None = None
    """GiB."""


def arrive(db: Engine, description: Description) -> None:
    """Enter the worker in the list. One that was draining when it died goes on draining."""
    with writing(db) as session:
        at = clock(session)
        known = session.get(Worker, description.name)
        fields = {**asdict(description), "queues": list(description.queues), "started_at": at, "beat_at": at}
        session.merge(Worker(**fields, draining=known.draining if known else False))
        session.execute(delete(Worker).where(Worker.beat_at < at - FORGET_SECONDS))


def beat(db: Engine, description: Description, use: Use) -> bool:
    """The worker lives. True: it may take jobs; False: it is to drain."""
    with writing(db) as session:
        worker = session.get(Worker, description.name, with_for_update=True)
        if worker is not None:
            worker.beat_at, worker.gpu_use, worker.gpu_memory_used = clock(session), use.fraction, use.memory
            return not worker.draining
    arrive(db, description)  # somebody emptied the table
    return True


def leave(db: Engine, name: str) -> None:
    """The worker has shut down in good order."""
    with writing(db) as session:
        session.execute(delete(Worker).where(Worker.name == name))


def drain(db: Engine, name: str, *, caller: Caller) -> Worker:
    """The worker finishes what it has and takes nothing more, until `resume`."""
    return _set_draining(db, name, True, caller)


def resume(db: Engine, name: str, *, caller: Caller) -> Worker:
    """The worker takes jobs again."""
    return _set_draining(db, name, False, caller)


def _set_draining(db: Engine, name: str, draining: bool, caller: Caller) -> Worker:
    with writing(db) as session:
        worker = session.get(Worker, name, with_for_update=True)
        if worker is None:
            raise UnknownWorkerError(f"there is no worker {name!r}; the list of workers has them all")
        if worker.draining != draining:
            worker.draining = draining
            audit.record(session, caller, "worker.drain" if draining else "worker.resume", name)
        return worker


def is_draining(db: Engine, name: str) -> bool:
    with reading(db) as session:
        worker = session.get(Worker, name)
        return worker is not None and worker.draining


def workers(db: Engine) -> Sequence[Worker]:
    """All that are known, by name."""
    with reading(db) as session:
        return session.scalars(select(Worker).order_by(Worker.name)).all()
