"""An API key can be for another one's jobs; a job is claimed by the process that may write its rows."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("owner_id", sa.Uuid()))
    op.add_column("job_attempts", sa.Column("database_role", sa.Text()))
    op.create_table(
        "job_claims",
        sa.Column("job_id", sa.Uuid(), primary_key=True),
        sa.Column("secret_sha256", sa.LargeBinary(), nullable=False, unique=True),
        sa.Column("claimed_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("job_claims")
    op.drop_column("job_attempts", "database_role")
    op.drop_column("api_keys", "owner_id")
