"""API keys, saved configurations and idempotency keys of the API's clients."""
