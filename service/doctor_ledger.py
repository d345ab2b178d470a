"""What the ledger tells of an installation's health: clocks, workers, jobs that nobody can take, silent claims."""

import time
from collections.abc import Iterator
from importlib.metadata import version

from sqlalchemy import Engine, func, select

from service.db import clock, now, reading
from service.findings import Finding
from service.outlook import misfit
from service.roster import Shown, roster
from service.settings import Settings
from service.tables import AuditEvent, Delivery, Job, Seat
from service.waiting import IN_ORDER
from service.wording import duration

_CLOCK_SECONDS = 5.0
_WITHOUT_BACKUP_SECONDS = 7 * 86400.0
_LOOKED_AT = 1000
"""Jobs that wait, the next ones first."""


def examine(db: Engine, settings: Settings) -> Iterator[Finding]:
    """All findings; expects a database that answers and is migrated."""
    yield from clocks(db)
    crew = roster(db, lease_seconds=settings.lease_seconds)
    yield from workers(crew, settings)
    yield from waiting(db, crew)
    yield from silent_claims(db, settings)
    yield from webhooks(db)
    yield from backups(db)


def clocks(db: Engine) -> Iterator[Finding]:
    before = time.time()
    with reading(db) as session:
        theirs = clock(session)
    difference = theirs - (before + time.time()) / 2
    if abs(difference) > _CLOCK_SECONDS:
        way = "ahead of" if difference > 0 else "behind"
        says = f"the database's clock is {abs(difference):.0f} s {way} this machine's"
        fix = "leases go by the database's clock and are safe; for logs and signatures let NTP set both"
        yield Finding("warning", "clock", says, fix)
    else:
        yield Finding("ok", "clock", "this machine and the database agree")


def workers(crew: list[Shown], settings: Settings) -> Iterator[Finding]:
    living = [shown for shown in crew if shown.state != "silent"]
    ours = version("dkl-bench")
    for shown in living:
        worker = shown.worker
        memory = f", {worker.gpu_memory:g} GiB" if worker.gpus else ""
        yield Finding("ok", "worker", f"{worker.name} is {shown.state}: {worker.device}{memory}")
        theirs = worker.versions.get("dkl-bench")
        if theirs != ours:
            says = f"{worker.name} runs version {theirs}, this is {ours}"
            yield Finding("error", "worker", says, "stop it, upgrade it, start it again: its job resumes")
    for shown in crew:
        if shown.state == "silent":
            says = f"{shown.worker.name} has been silent for {duration(shown.seconds_since_beat)}"
            yield Finding("warning", "worker", says, "see its log; it is forgotten after a week")
    served = {queue for shown in living for queue in shown.worker.queues}
    if not living:
        yield Finding(
            "warning",
            "worker",
            "none is alive: jobs wait until one comes",
            "dklbench up has one per GPU; with a broker: celery -A workers.app worker",
        )
    elif unserved := [queue for queue in settings.queues if queue not in served]:
        says = f"no living worker serves queue {', '.join(unserved)}"
        yield Finding("warning", "worker", says, "start one with DKLBENCH_QUEUES set to it")


def waiting(db: Engine, crew: list[Shown]) -> Iterator[Finding]:
    queued = select(Job).where(Job.status == "queued").order_by(*IN_ORDER)
    with reading(db) as session:
        jobs = session.scalars(queued.limit(_LOOKED_AT)).all()
    yield Finding("ok", "queue", f"{len(jobs)}{' or more' if len(jobs) == _LOOKED_AT else ''} jobs wait")
    stuck: dict[str, list[str]] = {}
    for job in jobs:
        if sentence := misfit(job, crew):
            stuck.setdefault(sentence, []).append(job.id)
    for sentence, job_ids in stuck.items():
        some = ", ".join(job_ids[:5]) + (f" and {len(job_ids) - 5} more" if len(job_ids) > 5 else "")
        yield Finding(
            "warning", "queue", f"{sentence}: {some}", "start such a worker, or cancel what waits for it"
        )


def silent_claims(db: Engine, settings: Settings) -> Iterator[Finding]:
    """Claims that should have been taken back long ago: somebody must be sweeping."""
    late = Seat.lease_until < now() - 10 * settings.sweep_seconds
    with reading(db) as session:
        job_ids = session.scalars(select(Seat.job_id).where(late).order_by(Seat.job_id).limit(5)).all()
    if job_ids:
        says = f"the workers of {', '.join(job_ids)} are silent, and nobody takes the jobs back"
        yield Finding("error", "claims", says, "start the service: it looks after lost jobs")
    else:
        yield Finding("ok", "claims", "none is left behind by a silent worker")


def webhooks(db: Engine) -> Iterator[Finding]:
    given_up = (Delivery.due_at.is_(None), Delivery.delivered_at.is_(None))
    with reading(db) as session:
        count = session.execute(select(func.count()).where(*given_up)).scalar_one()
        newest = select(Delivery.error).where(*given_up).order_by(Delivery.created_at.desc()).limit(1)
        last = session.scalars(newest).first()
    if count:
        fix = "whoever named the address learns the job's end from its page"
        yield Finding("info", "webhooks", f"{count} never arrived; the last: {last}", fix)


def backups(db: Engine) -> Iterator[Finding]:
    """When the last backup was made, as the audit log knows, and whether results of a week ago are in it."""
    kinds = AuditEvent.action.in_(("backup.create", "backup.restore"))
    with reading(db) as session:
        at = clock(session)
        last = session.scalars(select(AuditEvent).where(kinds).order_by(AuditEvent.id.desc()).limit(1)).first()
        made_at = float(last.detail["made_at"]) if last else None
        after = Job.finished_at > (made_at or 0.0)
        oldest = session.scalar(select(func.min(Job.finished_at)).where(Job.status == "succeeded", after))
    ago = f"the last one was made {duration(max(at - made_at, 0))} ago" if made_at else "none was ever made"
    if oldest is not None and oldest < at - _WITHOUT_BACKUP_SECONDS:
        says = f"{ago}, and results of the last {duration(at - oldest)} are in none"
        yield Finding("warning", "backup", says, "dklbench backup FOLDER, while the service runs; daily by cron")
    elif last and last.detail.get("missing"):
        says = f"{ago}, and the store had lost {last.detail['missing']} files by then"
        yield Finding("warning", "backup", says, "dklbench backup FOLDER names them; look into older backups")
    else:
        yield Finding("ok" if made_at else "info", "backup", ago)
