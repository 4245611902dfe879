"""One training run on several devices."""
