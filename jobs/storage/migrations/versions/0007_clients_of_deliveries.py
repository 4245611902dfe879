"""A delivery stores its job's client: each client has a share of the senders."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

TABLE = "webhook_deliveries"


def upgrade() -> None:
    op.add_column(TABLE, sa.Column("client", sa.Text(), nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column(TABLE, "client")
