"""Prefect: flow runs, work pools, the job queue, and the processes it starts."""
