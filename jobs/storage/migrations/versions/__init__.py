"""One migration per file, ordered by number."""
