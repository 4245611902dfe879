"""The local stack: PostgreSQL, Prefect, MLflow, workers and watchdog under supervisord."""
