"""What a job leaves: its adapter as an archive, metrics, logs and events."""
