"""HTTP only: routes over `jobs.service`."""
