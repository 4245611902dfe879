"""Training on several devices: the launcher and the DDP worker processes."""
