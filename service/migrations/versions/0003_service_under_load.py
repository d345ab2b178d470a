"""workers, seats, chunks, files, keys, audit and webhooks

A running job's claim moves from the job's row into a seat. Stored files that results name get a use, so that
garbage collection keeps them. The audit log refuses changes.
"""

from collections.abc import Iterator

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


_CLAIMS_TO_SEATS = """
    INSERT INTO seats (job_id, attempt, worker, taken_at, lease_until, progress_at)
    SELECT id, attempt, worker, started_at, lease_until, lease_until FROM jobs
    WHERE status IN ('running', 'cancelling') AND worker IS NOT NULL
"""
_SEATS_TO_CLAIMS = """
    UPDATE jobs SET
        worker = (SELECT max(worker) FROM seats WHERE seats.job_id = jobs.id),
        lease_until = (SELECT max(lease_until) FROM seats WHERE seats.job_id = jobs.id)
"""
_APPEND_ONLY = {
    "sqlite": [
        f"CREATE TRIGGER audit_events_no_{verb} BEFORE {verb.upper()} ON audit_events "
        "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        for verb in ("update", "delete")
    ],
    "postgresql": [
        "CREATE FUNCTION audit_events_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$",
        "CREATE TRIGGER audit_events_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_events "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_events_refuse()",
    ],
}


_JOBS = sa.table("jobs", sa.column("id"), sa.column("recipe", sa.JSON), sa.column("result", sa.JSON))
_USES = sa.table("artifact_uses", sa.column("sha256"), sa.column("job_id"), sa.column("role"))


def _used_files(connection: sa.Connection) -> Iterator[dict[str, str]]:
    """Checkpoints and evidence that jobs left, and checkpoints that evaluations name."""
    for job_id, recipe, result in connection.execute(sa.select(_JOBS.c.id, _JOBS.c.recipe, _JOBS.c.result)).all():
        for role in ("checkpoint", "evidence"):
            if result and (sha256 := result.get(f"{role}_sha256")):
                yield {"sha256": sha256, "job_id": job_id, "role": role}
        model = recipe.get("model")
        if isinstance(model, dict) and (sha256 := model.get("checkpoint")):
            yield {"sha256": sha256, "job_id": job_id, "role": "source"}


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(length=12), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("scope", sa.String(length=8), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("max_running", sa.Integer(), nullable=True),
        sa.Column("max_storage", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("created_by", sa.String(length=100), nullable=False),
        sa.Column("used_at", sa.Double(), nullable=True),
        sa.Column("revoked_at", sa.Double(), nullable=True),
        sa.CheckConstraint("scope IN ('read', 'submit', 'admin')", name=op.f("ck_api_keys_scope")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
    )
    op.create_table(
        "audit_events",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("actor", sa.String(length=100), nullable=False),
        sa.Column("action", sa.String(length=40), nullable=False),
        sa.Column("object", sa.String(length=200), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("address", sa.String(length=64), nullable=True),
        sa.Column("request_id", sa.String(length=64), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_events")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "workers",
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("host", sa.String(length=200), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("device", sa.String(length=200), nullable=False),
        sa.Column("gpus", sa.Integer(), nullable=False),
        sa.Column("gpu_memory", sa.Double(), nullable=False),
        sa.Column("processes", sa.Integer(), nullable=False),
        sa.Column("versions", sa.JSON(), nullable=False),
        sa.Column("queues", sa.JSON(), nullable=False),
        sa.Column("draining", sa.Boolean(), nullable=False),
        sa.Column("gpu_use", sa.Double(), nullable=True),
        sa.Column("gpu_memory_used", sa.Double(), nullable=True),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("beat_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_workers")),
    )
    with op.batch_alter_table("workers", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_workers_beat_at"), ["beat_at"], unique=False)

    op.create_table(
        "artifacts",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("key_id", sa.String(length=12), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name=op.f("fk_artifacts_key_id_api_keys")),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_artifacts")),
    )
    with op.batch_alter_table("artifacts", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_artifacts_key_id"), ["key_id"], unique=False)

    op.create_table(
        "uploads",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("key_id", sa.String(length=12), nullable=True),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("touched_at", sa.Double(), nullable=False),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name=op.f("fk_uploads_key_id_api_keys")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_uploads")),
    )
    with op.batch_alter_table("uploads", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_uploads_key_id"), ["key_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_uploads_sha256"), ["sha256"], unique=False)

    op.create_table(
        "artifact_uses",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("job_id", sa.String(length=12), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_artifact_uses_job_id_jobs")),
        sa.PrimaryKeyConstraint("sha256", "job_id", "role", name=op.f("pk_artifact_uses")),
    )
    with op.batch_alter_table("artifact_uses", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_artifact_uses_job_id"), ["job_id"], unique=False)

    op.create_table(
        "chunks",
        sa.Column("job_id", sa.String(length=12), nullable=False),
        sa.Column("stage", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("batch", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=True),
        sa.Column("found_sha256", sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_chunks_job_id_jobs")),
        sa.PrimaryKeyConstraint("job_id", "stage", "batch", name=op.f("pk_chunks")),
    )
    op.create_table(
        "deliveries",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("job_id", sa.String(length=12), nullable=False),
        sa.Column("url", sa.String(length=2000), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("due_at", sa.Double(), nullable=True),
        sa.Column("delivered_at", sa.Double(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_deliveries_job_id_jobs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deliveries")),
    )
    with op.batch_alter_table("deliveries", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_deliveries_due_at"), ["due_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_deliveries_job_id"), ["job_id"], unique=False)

    op.create_table(
        "seats",
        sa.Column("job_id", sa.String(length=12), nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("worker", sa.String(length=200), nullable=False),
        sa.Column("taken_at", sa.Double(), nullable=False),
        sa.Column("lease_until", sa.Double(), nullable=False),
        sa.Column("progress_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_seats_job_id_jobs")),
        sa.PrimaryKeyConstraint("job_id", "attempt", name=op.f("pk_seats")),
    )
    with op.batch_alter_table("seats", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_seats_lease_until"), ["lease_until"], unique=False)
        batch_op.create_index(batch_op.f("ix_seats_worker"), ["worker"], unique=False)

    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.add_column(sa.Column("rerun_of", sa.String(length=12), nullable=True))
        batch_op.add_column(sa.Column("key_id", sa.String(length=12), nullable=True))
        batch_op.add_column(sa.Column("queue", sa.String(length=40), server_default="gpu", nullable=False))
        batch_op.add_column(sa.Column("priority", sa.Integer(), server_default=sa.text("0"), nullable=False))
        batch_op.add_column(sa.Column("gpus", sa.Integer(), server_default=sa.text("0"), nullable=False))
        batch_op.add_column(sa.Column("gpu_memory", sa.Double(), server_default=sa.text("0"), nullable=False))
        batch_op.add_column(sa.Column("processes", sa.Integer(), server_default=sa.text("1"), nullable=False))
        batch_op.add_column(sa.Column("not_before", sa.Double(), nullable=True))
        batch_op.add_column(sa.Column("webhook", sa.String(length=2000), nullable=True))
        batch_op.drop_index(batch_op.f("ix_jobs_queue"))
        batch_op.create_index("ix_jobs_queue", ["status", "priority", "created_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_jobs_key_id"), ["key_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_jobs_rerun_of"), ["rerun_of"], unique=False)
        batch_op.create_foreign_key(batch_op.f("fk_jobs_rerun_of_jobs"), "jobs", ["rerun_of"], ["id"])
        batch_op.create_foreign_key(batch_op.f("fk_jobs_key_id_api_keys"), "api_keys", ["key_id"], ["id"])

    connection = op.get_bind()
    connection.execute(sa.text(_CLAIMS_TO_SEATS))
    op.bulk_insert(_USES, list(_used_files(connection)))
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.drop_column("worker")
        batch_op.drop_column("lease_until")
    for statement in _APPEND_ONLY[connection.dialect.name]:
        connection.exec_driver_sql(statement)


def downgrade() -> None:
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.add_column(sa.Column("lease_until", sa.Double(), nullable=True))
        batch_op.add_column(sa.Column("worker", sa.String(length=200), nullable=True))
    op.execute(_SEATS_TO_CLAIMS)
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.drop_constraint(batch_op.f("fk_jobs_key_id_api_keys"), type_="foreignkey")
        batch_op.drop_constraint(batch_op.f("fk_jobs_rerun_of_jobs"), type_="foreignkey")
        batch_op.drop_index(batch_op.f("ix_jobs_rerun_of"))
        batch_op.drop_index(batch_op.f("ix_jobs_key_id"))
        batch_op.drop_index("ix_jobs_queue")
        batch_op.create_index(batch_op.f("ix_jobs_queue"), ["status", "created_at"], unique=False)
        batch_op.drop_column("webhook")
        batch_op.drop_column("not_before")
        batch_op.drop_column("processes")
        batch_op.drop_column("gpu_memory")
        batch_op.drop_column("gpus")
        batch_op.drop_column("priority")
        batch_op.drop_column("queue")
        batch_op.drop_column("key_id")
        batch_op.drop_column("rerun_of")

    with op.batch_alter_table("seats", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_seats_worker"))
        batch_op.drop_index(batch_op.f("ix_seats_lease_until"))

    op.drop_table("seats")
    with op.batch_alter_table("deliveries", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_deliveries_job_id"))
        batch_op.drop_index(batch_op.f("ix_deliveries_due_at"))

    op.drop_table("deliveries")
    op.drop_table("chunks")
    with op.batch_alter_table("artifact_uses", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_artifact_uses_job_id"))

    op.drop_table("artifact_uses")
    with op.batch_alter_table("uploads", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_uploads_sha256"))
        batch_op.drop_index(batch_op.f("ix_uploads_key_id"))

    op.drop_table("uploads")
    with op.batch_alter_table("artifacts", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_artifacts_key_id"))

    op.drop_table("artifacts")
    with op.batch_alter_table("workers", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_workers_beat_at"))

    op.drop_table("workers")
    op.drop_table("audit_events")
    op.drop_table("api_keys")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION audit_events_refuse()")
