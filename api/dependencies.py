"""Dependencies that routes share: the job service, whose jobs a client sees, and `strict`."""

from typing import Annotated
from uuid import UUID

from fastapi import Depends, Query, Request

from jobs.clients.keys import Client
from jobs.clients.visibility import find_visible
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


def find_client(request: Request) -> Client | None:
    """The client that sent the request; None if no key is required."""
    client: Client | None = getattr(request.state, "client", None)
    return client


def find_visible_owner(request: Request) -> UUID | None:
    """The owner of the jobs that the client may see; None for all jobs."""
    return find_visible(find_client(request), request.app.state.settings)


def find_job_owner(request: Request) -> UUID | None:
    """The owner of a job that this request makes; None if no key is required."""
    client = find_client(request)
    return client.owner_id if client else None


Service = Annotated[JobService, Depends(get_service)]
VisibleOwner = Annotated[UUID | None, Depends(find_visible_owner)]
JobOwner = Annotated[UUID | None, Depends(find_job_owner)]
