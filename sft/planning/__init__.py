"""Plans a job before it runs: tokens, steps, memory, disk space, time, warnings."""
