"""What a job would take, told before it runs: tokens, steps, memory, disk, time, warnings."""
