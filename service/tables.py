"""The tables; `service/migrations/` mirrors them. Times are seconds since the epoch by the database's clock."""

from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

STATUSES = ("queued", "running", "cancelling", "succeeded", "failed", "canceled")
SCOPES = ("read", "submit", "admin")
_Counter = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar = {float: Double, dict[str, Any]: JSON, dict[str, str]: JSON, list[str]: JSON}


# --- jobs -------------------------------------------------------------------------------------------------


class Job(Base):
    """A recipe being run. Written through service/moves.py only."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(f"status IN {STATUSES}", name="status"),
        Index("ix_jobs_queue", "status", "priority", "created_at"),
        Index("ix_jobs_board", "dataset", "norm", "eps", "robust_accuracy"),
    )

    id: Mapped[str] = mapped_column(String(12), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    name: Mapped[str | None] = mapped_column(String(200))
    """The catalogue name it was submitted under, if any."""
    recipe: Mapped[dict[str, Any]]
    fingerprint: Mapped[str] = mapped_column(String(64), index=True)
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"), index=True)
    """The job whose checkpoint this one waits for."""
    rerun_of: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"), index=True)
    """The ended job that this one runs again."""
    key_id: Mapped[str | None] = mapped_column(ForeignKey("api_keys.id"), index=True)
    """The key it was submitted with; absent where none was needed."""

    queue: Mapped[str] = mapped_column(String(40), server_default="gpu")
    priority: Mapped[int] = mapped_column(server_default=text("0"))
    """Higher ones first; among equals the older one."""
    gpus: Mapped[int] = mapped_column(server_default=text("0"))
    """GPUs that its worker must see."""
    gpu_memory: Mapped[float] = mapped_column(server_default=text("0"))
    """GiB that each of them must have."""
    processes: Mapped[int] = mapped_column(server_default=text("1"))
    """Processes that train together; each takes a GPU where there are any."""

    status: Mapped[str] = mapped_column(String(16), default="queued")
    reason: Mapped[str | None] = mapped_column(Text)
    """Why the job is in its status, in a sentence; set where something went wrong."""
    revision: Mapped[int] = mapped_column(default=0)
    """Grows with every change of the job, its progress or its events: watchers compare it."""
    attempt: Mapped[int] = mapped_column(default=0)
    """How often it was claimed; a claim's number is its fencing token."""
    losses: Mapped[int] = mapped_column(default=0)
    """How often it cost a worker its life, or its worker went silent or made no progress."""
    not_before: Mapped[float | None]
    """After a setback that passes by itself, such as a full disk: no worker takes it earlier."""
    sent_at: Mapped[float | None]
    """When the queue was last told that it is ready."""
    webhook: Mapped[str | None] = mapped_column(String(2000))
    """Where to say that it has ended."""

    progress: Mapped[dict[str, Any] | None]
    result: Mapped[dict[str, Any] | None]
    dataset: Mapped[str] = mapped_column(String(80))
    norm: Mapped[str | None] = mapped_column(String(8))
    eps: Mapped[float | None]
    clean_accuracy: Mapped[float | None]
    robust_accuracy: Mapped[float | None]

    created_at: Mapped[float]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]

    seats: Mapped[list["Seat"]] = relationship(lazy="selectin", order_by="Seat.attempt", viewonly=True)
    """The claims that workers hold on it now."""

    needs: Mapped[list["JobPlugin"]] = relationship(lazy="selectin", order_by="JobPlugin.plugin", viewonly=True)
    """What must be installed on its worker."""

    @property
    def workers(self) -> list[str]:
        """Names of those who are at work on it, the longest first."""
        return [seat.worker for seat in self.seats]


class JobPlugin(Base):
    """A plugin that a job's worker must have: "model:NAME" or "objective:NAME"."""

    __tablename__ = "job_plugins"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    plugin: Mapped[str] = mapped_column(String(80), primary_key=True)


class Seat(Base):
    """A claim that a worker holds: one of a training, any number of an evaluation. Gone when it is given back."""

    __tablename__ = "seats"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    worker: Mapped[str] = mapped_column(String(200), index=True)
    taken_at: Mapped[float]
    lease_until: Mapped[float] = mapped_column(index=True)
    progress_at: Mapped[float]
    """When it last said anything; a hung worker's heart still beats."""


class Chunk(Base):
    """A batch of one stage of an evaluation: free, taken by a seat, or done. Gone when the job has succeeded, or
    cannot be resumed any more."""

    __tablename__ = "chunks"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    stage: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    batch: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    attempt: Mapped[int | None]
    """Of the seat that has taken it."""
    found_sha256: Mapped[str | None] = mapped_column(String(64))
    """The stored verdicts, when it is done."""


class JobEvent(Base):
    """What a job said, and every change of its status. Append-only."""

    __tablename__ = "job_events"
    __table_args__ = (
        UniqueConstraint("job_id", "key"),
        Index("ix_job_events_stream", "job_id", "id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(_Counter, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    attempt: Mapped[int]
    kind: Mapped[str] = mapped_column(String(16))
    key: Mapped[str | None] = mapped_column(String(40))
    """Names a fact of the run, which a resumed run says again and the ledger keeps once."""
    payload: Mapped[dict[str, Any]]
    at: Mapped[float]


class Worker(Base):
    """A process that runs jobs, as it described itself. Written by service/registry.py only."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    host: Mapped[str] = mapped_column(String(200))
    pid: Mapped[int]
    device: Mapped[str] = mapped_column(String(200))
    """What its GPUs are called, or the processor."""
    gpus: Mapped[int]
    gpu_memory: Mapped[float]
    """GiB of the smallest of them; 0 without."""
    processes: Mapped[int]
    """The most that may train together on it."""
    versions: Mapped[dict[str, str]]
    queues: Mapped[list[str]]
    plugins: Mapped[dict[str, str]] = mapped_column(server_default=text("'{}'"))
    """Package and version by "model:NAME" or "objective:NAME"."""
    draining: Mapped[bool] = mapped_column(default=False)
    """Finishes what it has and takes nothing more."""
    gpu_use: Mapped[float | None]
    """Fraction of the last moments in which the GPUs computed, their mean."""
    gpu_memory_used: Mapped[float | None]
    """GiB, of all its GPUs together."""
    started_at: Mapped[float]
    beat_at: Mapped[float] = mapped_column(index=True)


# --- files ------------------------------------------------------------------------------------------------


class Artifact(Base):
    """A stored file, named by its content. Written by service/files.py only."""

    __tablename__ = "artifacts"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    key_id: Mapped[str | None] = mapped_column(ForeignKey("api_keys.id"), index=True)
    """Who caused it first, and whose storage it counts to."""
    created_at: Mapped[float]


class ArtifactUse(Base):
    """A reason to keep a stored file. What has none is garbage after a while."""

    __tablename__ = "artifact_uses"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True, index=True)
    role: Mapped[str] = mapped_column(String(16), primary_key=True)
    """source: the job needs it. checkpoint, evidence: it left it. finding: verdicts of a chunk, as long as
    the job has that."""


class Upload(Base):
    """A file on its way in, or just arrived; its bytes so far lie in the uploads folder under its id."""

    __tablename__ = "uploads"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    key_id: Mapped[str | None] = mapped_column(ForeignKey("api_keys.id"), index=True)
    name: Mapped[str] = mapped_column(String(200))
    """What its owner calls it; for people only."""
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    created_at: Mapped[float]
    touched_at: Mapped[float]
    finished_at: Mapped[float | None]


# --- the leaderboard -------------------------------------------------------------------------------------


class ReportedRow(Base):
    """A published result that an admin brought in beside those that come with the package."""

    __tablename__ = "reported_rows"

    entry: Mapped[str] = mapped_column(String(200), primary_key=True)
    """Names it in addresses."""
    document: Mapped[dict[str, Any]]
    """RobustBench's model_info of it, with `dataset` and `threat_model` as RobustBench's folders name them."""
    added_at: Mapped[float]
    added_by: Mapped[str] = mapped_column(String(100))


class Verification(Base):
    """Somebody has checked the evidence of an evaluation with its model, and said what came out. Append-only."""

    __tablename__ = "verifications"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(_Counter, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    at: Mapped[float]
    actor: Mapped[str] = mapped_column(String(100))
    """Whose word it is: a key's name and id, or "anonymous"."""
    evidence_sha256: Mapped[str] = mapped_column(String(64))
    images: Mapped[int]
    adversarial: Mapped[int]
    """Adversarial images that were checked."""
    faults: Mapped[int]
    """Claims that do not hold; 0 where all of the evidence is proved."""
    sentences: Mapped[list[str]]
    """The first of the faults."""
    device: Mapped[str] = mapped_column(String(200))
    versions: Mapped[dict[str, str]]


# --- people -----------------------------------------------------------------------------------------------


class ApiKey(Base):
    """A right to ask. The key itself is shown once and never stored."""

    __tablename__ = "api_keys"
    __table_args__ = (CheckConstraint(f"scope IN {SCOPES}", name="scope"),)

    id: Mapped[str] = mapped_column(String(12), primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    scope: Mapped[str] = mapped_column(String(8))
    """read; submit, which includes read; admin, which includes both."""
    digest: Mapped[str] = mapped_column(String(64))
    """HMAC-SHA256 of the key under the service's secret."""
    max_running: Mapped[int | None]
    """Jobs of this key that run at the same time; further ones wait."""
    max_storage: Mapped[int | None] = mapped_column(BigInteger)
    """Bytes of stored files that this key caused."""
    created_at: Mapped[float]
    created_by: Mapped[str] = mapped_column(String(100))
    used_at: Mapped[float | None]
    revoked_at: Mapped[float | None]


class AuditEvent(Base):
    """Who did what. Append-only: the database itself refuses changes."""

    __tablename__ = "audit_events"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(_Counter, primary_key=True)
    at: Mapped[float]
    actor: Mapped[str] = mapped_column(String(100))
    """A key's name and id, "anonymous", or "command line"."""
    action: Mapped[str] = mapped_column(String(40))
    """"job.create", "key.revoke", "worker.drain", ..."""
    object: Mapped[str] = mapped_column(String(200))
    detail: Mapped[dict[str, Any]]
    """What changed, before and after; no secrets."""
    address: Mapped[str | None] = mapped_column(String(64))
    request_id: Mapped[str | None] = mapped_column(String(64))


class Delivery(Base):
    """A webhook that is due, or was delivered or given up."""

    __tablename__ = "deliveries"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    url: Mapped[str] = mapped_column(String(2000))
    tries: Mapped[int] = mapped_column(default=0)
    due_at: Mapped[float | None] = mapped_column(index=True)
    """When to try next; absent when it is over."""
    delivered_at: Mapped[float | None]
    error: Mapped[str | None] = mapped_column(Text)
    """What the last try met."""
    created_at: Mapped[float]
