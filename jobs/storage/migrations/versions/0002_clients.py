"""Job events, versions of saved configurations, idempotency keys and API keys."""

from datetime import datetime

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0002"
down_revision = "0001"


def _created_at(index: bool = False) -> sa.Column[datetime]:
    now = sa.func.now()
    return sa.Column("created_at", sa.DateTime(timezone=True), server_default=now, nullable=False, index=index)


def upgrade() -> None:
    op.create_table(
        "job_events",
        sa.Column("id", sa.BigInteger(), sa.Identity(), primary_key=True),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("data", JSONB(), nullable=False),
        _created_at(),
    )
    op.create_index("ix_job_events_job_id_id", "job_events", ["job_id", "id"])
    op.add_column("saved_configs", sa.Column("version", sa.Integer(), server_default="1", nullable=False))
    op.add_column(
        "saved_configs",
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
    )
    op.add_column("saved_configs", sa.Column("deleted_at", sa.DateTime(timezone=True)))
    op.create_table(
        "saved_config_versions",
        sa.Column("config_id", sa.Uuid(), sa.ForeignKey("saved_configs.config_id"), primary_key=True),
        sa.Column("version", sa.Integer(), primary_key=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("config", JSONB(), nullable=False),
        _created_at(),
    )
    op.execute(
        "INSERT INTO saved_config_versions (config_id, version, name, config, created_at) "
        "SELECT config_id, 1, name, config, created_at FROM saved_configs"
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("scope", sa.Text(), primary_key=True),
        sa.Column("key", sa.Text(), primary_key=True),
        sa.Column("body_sha256", sa.Text(), nullable=False),
        sa.Column("answer", JSONB(), nullable=False),
        _created_at(index=True),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("key_sha256", sa.Text(), nullable=False, unique=True),
        sa.Column("scopes", ARRAY(sa.Text()), nullable=False),
        _created_at(),
        sa.Column("revoked_at", sa.DateTime(timezone=True)),
    )


def downgrade() -> None:
    for table in ("api_keys", "idempotency_keys", "saved_config_versions", "job_events"):
        op.drop_table(table)
    for column in ("deleted_at", "updated_at", "version"):
        op.drop_column("saved_configs", column)
