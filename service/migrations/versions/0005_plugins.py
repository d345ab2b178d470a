"""what workers offer beside our own code, and which jobs need it"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "job_plugins",
        sa.Column("job_id", sa.String(12), nullable=False),
        sa.Column("plugin", sa.String(80), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_plugins_job_id_jobs")),
        sa.PrimaryKeyConstraint("job_id", "plugin", name=op.f("pk_job_plugins")),
    )
    op.add_column("workers", sa.Column("plugins", sa.JSON(), server_default=sa.text("'{}'"), nullable=False))


def downgrade() -> None:
    op.drop_column("workers", "plugins")
    op.drop_table("job_plugins")
