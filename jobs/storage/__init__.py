"""Tuneyard's own tables in PostgreSQL: their schema, connections and rows."""
