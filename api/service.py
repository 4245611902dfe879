"""Gives routes the job service."""

from fastapi import Request

from jobs.door import Door
from jobs.service import JobService


def get_service(request: Request) -> JobService:
    """The app's service; waits while the stack is starting."""
    door: Door = request.app.state.door
    return door.open()
