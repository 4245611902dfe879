"""Job reports and saved configurations."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "job_reports",
        sa.Column("job_id", sa.Uuid(), primary_key=True),
        sa.Column("phase", sa.Text()),
        sa.Column("progress", JSONB()),
        sa.Column("result", JSONB()),
        sa.Column("error", sa.Text()),
        sa.Column("error_code", sa.Text()),
        sa.Column("tracking_url", sa.Text()),
        sa.Column("output_path", sa.Text()),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
    )
    op.create_table(
        "saved_configs",
        sa.Column("config_id", sa.Uuid(), primary_key=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("config", JSONB(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("saved_configs")
    op.drop_table("job_reports")
