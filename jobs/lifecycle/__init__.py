"""A job's attempts, its end, and re-creation of lost runs."""
