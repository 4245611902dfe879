"""Checks that what a training has saved gives the trained model with transformers and PEFT alone."""
