"""The schema of Tuneyard's own tables, step by step."""
