"""The local stack: PostgreSQL, Prefect, MLflow and workers under a process manager."""
