"""HTTP only: routes over `jobs.service.job_service`."""
