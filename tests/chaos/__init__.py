"""Faults on purpose: what becomes of jobs while parts of the service are killed, stopped and restarted."""
