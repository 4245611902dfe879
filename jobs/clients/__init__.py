"""What is kept for clients of the API: keys, saved configurations, idempotency keys."""
