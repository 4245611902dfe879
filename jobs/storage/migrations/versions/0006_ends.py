"""A job's report stores its end, the facts of its run, and the id of a re-created run."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0006"
down_revision = "0005"

TABLE = "job_reports"


def upgrade() -> None:
    op.add_column(TABLE, sa.Column("status", sa.Text()))
    op.add_column(TABLE, sa.Column("ended_at", sa.DateTime(timezone=True)))
    op.add_column(TABLE, sa.Column("run", JSONB()))
    op.add_column(TABLE, sa.Column("run_id", sa.Uuid()))
    is_open = sa.text("status IS NULL AND run IS NOT NULL")
    op.create_index("ix_job_reports_open", TABLE, ["job_id"], postgresql_where=is_open)
    op.create_index("ix_job_reports_ended_at", TABLE, ["ended_at"])
    op.create_index("ix_job_reports_run_id", TABLE, ["run_id"], postgresql_where=sa.text("run_id IS NOT NULL"))


def downgrade() -> None:
    op.drop_index("ix_job_reports_run_id", TABLE)
    op.drop_index("ix_job_reports_ended_at", TABLE)
    op.drop_index("ix_job_reports_open", TABLE)
    for name in ("run_id", "run", "ended_at", "status"):
        op.drop_column(TABLE, name)
