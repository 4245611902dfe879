"""Faster arithmetic of a training step on CPUs."""
