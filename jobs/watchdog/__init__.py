"""The watchdog: periodic tasks that hold whatever becomes of jobs, clients and the API."""
