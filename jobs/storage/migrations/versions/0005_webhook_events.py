"""Webhooks for other events than a job's end: a delivery has an event."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

TABLE = "webhook_deliveries"


def upgrade() -> None:
    op.add_column(TABLE, sa.Column("event", sa.Text(), nullable=False, server_default="ended"))
    op.add_column(TABLE, sa.Column("event_key", sa.Text(), nullable=True))
    op.execute(f"UPDATE {TABLE} SET event_key = status")  # noqa: S608 - a name of our own
    op.alter_column(TABLE, "event_key", nullable=False)
    op.drop_constraint("webhook_deliveries_job_id_status_key", TABLE)
    op.create_unique_constraint("webhook_deliveries_job_id_event_key_key", TABLE, ["job_id", "event_key"])


def downgrade() -> None:
    op.execute(f"DELETE FROM {TABLE} WHERE event <> 'ended'")  # noqa: S608
    op.drop_constraint("webhook_deliveries_job_id_event_key_key", TABLE)
    op.create_unique_constraint("webhook_deliveries_job_id_status_key", TABLE, ["job_id", "status"])
    op.drop_column(TABLE, "event_key")
    op.drop_column(TABLE, "event")
