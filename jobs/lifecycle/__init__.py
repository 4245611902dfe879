"""Attempts at a job, its end, and new runs for those that were lost."""
