"""The HTTP layer: routes that call `jobs.service.job_service`."""
