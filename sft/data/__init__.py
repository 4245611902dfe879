"""Data files as token ids and labels."""
