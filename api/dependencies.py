"""What routes have in common: the job service, and `strict`."""

from typing import Annotated

from fastapi import Depends, Query, Request

from jobs.service.access import StackAccess
from jobs.service.job_service import JobService

Strict = Annotated[
    bool,
    Query(
        description="Refuse a job that names something missing or asks for what no worker can do, as far as that is "
        "known; otherwise the answer has `warnings` beside its other keys."
    ),
]


def get_service(request: Request) -> JobService:
    """The app's service; waits while the stack is starting."""
    access: StackAccess = request.app.state.access
    return access.open()


Service = Annotated[JobService, Depends(get_service)]
