"""A job's results: its adapter as an archive, metrics, logs, events and checkpoints."""
