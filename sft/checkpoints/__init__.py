"""Checkpoints: complete or absent, and training that continues from them."""
