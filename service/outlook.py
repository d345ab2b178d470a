"""Why a job that waits has not begun yet, in a sentence."""

from collections.abc import Callable, Sequence

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from service.db import clock, reading
from service.jobs import DEFAULT_QUEUE
from service.moves import ACTIVE
from service.roster import Shown
from service.tables import ApiKey, Job, Worker
from service.waiting import position
from service.wording import duration, nth


def outlook(db: Engine, job: Job, crew: Sequence[Shown]) -> str | None:
    """What the job waits for, or its place in the queue; None where it does not wait."""
    if (place := position(db, job)) is None:
        return None
    return obstacles(db, [job], crew).get(job.id) or f"waits for a worker, {nth(place)} in queue {job.queue}"


def obstacles(db: Engine, jobs: Sequence[Job], crew: Sequence[Shown]) -> dict[str, str]:
    """By id of the queued ones among `jobs`: what keeps them from being begun by the next free worker, if anything
    does. (A model that is not trained yet is not among it.)"""
    waiting = [job for job in jobs if job.status == "queued"]
    with reading(db) as session:
        at = clock(session)
        busy = _busy_keys(session, {job.key_id for job in waiting if job.key_id is not None})
    found = {job.id: _pause(job, at) or busy.get(job.key_id or "") or misfit(job, crew) for job in waiting}
    return {job_id: sentence for job_id, sentence in found.items() if sentence}


def _pause(job: Job, at: float) -> str | None:
    if job.not_before is None or job.not_before <= at:
        return None
    after = f", after: {job.reason}" if job.reason else ""
    return f"tries again in {duration(job.not_before - at)}{after}"


def _busy_keys(session: Session, key_ids: set[str]) -> dict[str, str]:
    """A sentence for each of these keys that has as many jobs running as it may."""
    if not key_ids:
        return {}
    running = select(func.count()).where(Job.key_id == ApiKey.id, Job.status.in_(ACTIVE)).scalar_subquery()
    full = select(ApiKey.id, ApiKey.max_running).where(ApiKey.id.in_(key_ids), ApiKey.max_running <= running)
    return {
        key_id: f"waits for another job of its key, which may run {_count(most, 'job')} at a time"
        for key_id, most in session.execute(full)
        if most is not None
    }


# --- what no worker has -----------------------------------------------------------------------------------


def misfit(job: Job, crew: Sequence[Shown]) -> str | None:
    """Why no living worker could take the job, however long it waits; None where one could."""
    living = [shown.worker for shown in crew if shown.state != "silent"]
    if not living:
        return "no worker is alive"
    serving = [worker for worker in living if job.queue in worker.queues]
    if not serving:
        return f"no living worker serves queue {job.queue}"
    for asked, of, sentence in _NEEDS:
        most = max(of(worker) for worker in serving)
        if asked(job) > most:
            return sentence(job, most)
    for plugin in plugins_of(job):
        if not any(plugin in worker.plugins for worker in serving):
            kind, _, name = plugin.partition(":")
            return (
                f"no living worker has the plugin {name} ({kind}); install its package there, and start it again"
            )
    fitting = [worker for worker in serving if _fits(job, worker)]
    if not fitting:
        return f"no living worker has {_all_needs(job)} at the same time"
    if all(worker.draining for worker in fitting):
        return "every worker that it fits is draining"
    return None


def plugins_of(job: Job) -> list[str]:
    """What must be installed on its worker: "model:NAME", "objective:NAME"."""
    return [need.plugin for need in job.needs]


def _fits(job: Job, worker: Worker) -> bool:
    return all(asked(job) <= of(worker) for asked, of, _ in _NEEDS) and all(
        plugin in worker.plugins for plugin in plugins_of(job)
    )


def _gpus(job: Job, most: float) -> str:
    if not most:
        return "no living worker has a GPU"
    return f"no living worker has {job.gpus} GPUs; the most is {most:g}"


def _memory(job: Job, most: float) -> str:
    return f"no living worker has a GPU with {job.gpu_memory:g} GiB; the largest has {most:g}"


def _processes(job: Job, most: float) -> str:
    return f"no living worker can train with {job.processes} processes; the most is {most:g}"


_Need = tuple[Callable[[Job], float], Callable[[Worker], float], Callable[[Job, float], str]]
_NEEDS: tuple[_Need, ...] = (
    (lambda job: job.gpus, lambda worker: worker.gpus, _gpus),
    (lambda job: job.gpu_memory, lambda worker: worker.gpu_memory, _memory),
    (lambda job: job.processes, lambda worker: worker.processes, _processes),
)


def _all_needs(job: Job) -> str:
    return " and ".join(_needs(job))


def _needs(job: Job) -> list[str]:
    needs = [
        _count(job.gpus, "GPU") if job.gpus else "",
        f"{job.gpu_memory:g} GiB per GPU" if job.gpu_memory else "",
        f"room for {job.processes} processes" if job.processes > 1 else "",
        *(f"the plugin {plugin.partition(':')[2]}" for plugin in plugins_of(job)),
    ]
    return [need for need in needs if need]


def asked(job: Job) -> str:
    """How the job is scheduled, as far as that is nothing usual; empty where it is."""
    queue = f"in queue {job.queue}" if job.queue != DEFAULT_QUEUE else ""
    priority = f"priority {job.priority:+d}" if job.priority else ""
    needs = _needs(job)
    return ", ".join(part for part in (queue, priority, f"needs {' and '.join(needs)}" if needs else "") if part)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
