"""Attempts at jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "job_attempts",
        sa.Column("job_id", sa.Uuid(), primary_key=True),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("token", sa.Uuid()),
        sa.Column("host", sa.Text()),
        sa.Column("pid", sa.Integer()),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True)),
        sa.Column("is_interrupted", sa.Boolean(), nullable=False),
        sa.Column("cause", sa.Text()),
        sa.Column("message", sa.Text()),
        sa.Column("settled", sa.Integer(), nullable=False),
        sa.Column("settled_at", sa.DateTime(timezone=True)),
        sa.Column("lost", sa.Integer(), nullable=False),
        sa.Column("cancelled_at", sa.DateTime(timezone=True)),
    )


def downgrade() -> None:
    op.drop_table("job_attempts")
