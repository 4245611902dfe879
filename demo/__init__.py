"""`make demo`: runs one real job and shows its progress and result."""
