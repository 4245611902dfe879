"""Responses for a job's webhook deliveries."""

from typing import Annotated

from pydantic import Field

from tuneyard_wire.response import Id, Moment, Response, one_of, with_example

Event = Annotated[str, one_of("started", "checkpoint", "ended")]
Status = Annotated[str, one_of("running", "completed", "failed", "cancelled")]
State = Annotated[str, one_of("pending", "delivered", "failed", "gone")]


class DeliveryAttempt(Response):
    """One request to a webhook: the receiver's status, or the error if there was no response."""

    time: Moment
    status_code: int | None = None
    error: str | None = None


class Delivery(Response):
    """An event that is sent to a job's webhook. `gone`: it responded 410; `failed`: given up after 3 days.

    `webhook_id` is sent in the header `webhook-id`, the same in every attempt.
    """

    model_config = with_example(
        delivery_id="6f0d8bb2-58a4-4f5c-9c46-2a1e4ce5d7a1",
        webhook_id="msg_6f0d8bb258a44f5c9c462a1e4ce5d7a1",
        job_id="550e8400-e29b-41d4-a716-446655440000",
        event="ended",
        status="completed",
        url="https://example.com/webhook",
        state="delivered",
        attempts=[
            {"time": "2026-04-05T16:31:07.214000+00:00", "status_code": 503, "error": None},
            {"time": "2026-04-05T16:31:09.380000+00:00", "status_code": 200, "error": None},
        ],
        next_attempt_at=None,
        created_at="2026-04-05T16:31:07.204000+00:00",
    )

    delivery_id: Id
    webhook_id: str
    job_id: Id
    event: Event = "ended"
    status: Status
    url: str
    state: State
    attempts: list[DeliveryAttempt]
    next_attempt_at: Moment | None = None
    created_at: Moment


class Deliveries(Response):
    """A job's deliveries, oldest first."""

    model_config = with_example(deliveries=[Delivery.example()])

    deliveries: list[Delivery] = Field(default_factory=list)
