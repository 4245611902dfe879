"""Gives routes the job service."""

from fastapi import Request

from jobs.service.access import StackAccess
from jobs.service.job_service import JobService


def get_service(request: Request) -> JobService:
    """The app's service; waits while the stack is starting."""
    door: StackAccess = request.app.state.door
    return door.open()
