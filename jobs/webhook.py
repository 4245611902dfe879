"""The call that tells a client its job has ended."""

import logging
import time
from typing import Any
from uuid import UUID

import httpx
from sqlalchemy import Engine

from jobs.events import write_end_once
from jobs.store import JobReport

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 10.0
RETRY_DELAYS_SECONDS = (0.0, 1.0, 5.0)


def build_payload(job_id: UUID, status: str, report: JobReport | None, message: str | None = None) -> dict[str, Any]:
    """The documented body: `job_id, status, tracking_url` and `output_path`, or `error` for a failed job."""
    payload: dict[str, Any] = {"job_id": str(job_id), "status": status}
    payload["tracking_url"] = report.tracking_url if report else None
    if status == "failed":
        payload["error"] = (report.error if report else None) or message
        payload["error_code"] = report.error_code if report else None
        return payload
    result = (report.result if report else None) or {}
    payload["output_path"] = report.output_path if report else None
    for key in ("model_name", "model_version", "metrics"):
        payload[key] = result.get(key)
    return payload


def tell_of_cancellation(engine: Engine, job_id: UUID, url: str) -> None:
    """Call the webhook of a job that was cancelled before it had a process which could; once, whoever else does."""
    if write_end_once(engine, job_id, "cancelled"):
        deliver(url, build_payload(job_id, "cancelled", None))


def deliver(url: str, payload: dict[str, Any]) -> bool:
    """Post the payload; True once the receiver answers 2xx. Redirects are not followed."""
    for delay_seconds in RETRY_DELAYS_SECONDS:
        time.sleep(delay_seconds)
        try:
            with httpx.Client(timeout=TIMEOUT_SECONDS, follow_redirects=False, trust_env=False) as client:
                answer = client.post(url, json=payload)
        except httpx.HTTPError as error:
            logger.warning("Webhook of job %s: %s", payload["job_id"], type(error).__name__)
            continue
        if answer.is_success:
            logger.info("Webhook of job %s delivered: %s", payload["job_id"], answer.status_code)
            return True
        logger.warning("Webhook of job %s: the receiver answered %s", payload["job_id"], answer.status_code)
    return False
