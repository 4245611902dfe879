"""Dependencies that routes share: the job service, and `strict`."""

from typing import Annotated

from fastapi import Depends, Query, Request

from jobs.service.access import StackAccess
from jobs.service.job_service import JobService

Strict = Annotated[
    bool,
    Query(
        description="Reject a job that is known to fail, because something it names is missing or no worker can run "
        "it. Otherwise the response has `warnings`."
    ),
]


def get_service(request: Request) -> JobService:
    """The app's job service. Waits while the stack starts; raises StackError."""
    access: StackAccess = request.app.state.access
    return access.open()


Service = Annotated[JobService, Depends(get_service)]
