"""Alembic migrations of Tuneyard's own tables."""
