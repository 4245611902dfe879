"""`make demo`: one real job, shown to a person."""
