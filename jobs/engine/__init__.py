"""Prefect's side of jobs: flow runs, work pools, the job queue, and processes of jobs."""
