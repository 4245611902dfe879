"""A webhook call: its body, its signature, and how it is sent."""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from uuid import UUID

import httpcore
import httpx
from standardwebhooks import Webhook

from jobs.network.failures import describe_failure
from jobs.setting_types import read_secret
from jobs.storage.tables import JobReport
from jobs.webhooks.targets import Address, ForbiddenTarget, GuardedNetwork, Network

TIMEOUT_SECONDS = 15.0  # for one attempt, without name resolution
ERROR_CHARACTERS = 300
NO_REASON = "the job's process ended without an error message"
STATE_PREFIX = "Flow run encountered an exception: "


@dataclass(frozen=True)
class CallOutcome:
    """The outcome of one attempt: the receiver's HTTP status, or an error."""

    status_code: int | None = None
    error: str | None = None
    retry_after_seconds: float = 0.0

    @property
    def is_delivered(self) -> bool:
        """Whether the receiver accepted it."""
        return self.status_code is not None and httpx.codes.is_success(self.status_code)


def build_payload(job_id: UUID, status: str, report: JobReport | None, message: str | None = None) -> dict[str, Any]:
    """The documented body: `job_id, status, tracking_url` and `output_path`, or `error` for a failed job."""
    payload: dict[str, Any] = {"job_id": str(job_id), "status": status}
    payload["tracking_url"] = report.tracking_url if report else None
    if status == "failed":
        said = (message or NO_REASON).removeprefix(STATE_PREFIX).splitlines()[0]
        payload["error"] = (report.error if report else None) or said
        payload["error_code"] = (report.error_code if report else None) or "crashed"
        return payload
    result = (report.result if report and status == "completed" else None) or {}
    payload["output_path"] = report.output_path if report else None
    for key in ("model_name", "model_version", "metrics"):
        payload[key] = result.get(key)
    return payload


def build_event_payload(job_id: UUID, event: str, details: Mapping[str, Any]) -> dict[str, Any]:
    """The body of an event before the end: `job_id, status, event`, and `step` and `path` of a checkpoint."""
    given = {name: details[name] for name in ("step", "path") if name in details}
    return {"job_id": str(job_id), "status": "running", "event": event, **given}


def send(
    url: str,
    message_id: str,
    payload: Mapping[str, Any],
    secrets: Sequence[str],
    allowed: Iterable[Network],
    enter: Callable[[Address], None] = lambda _: None,
) -> CallOutcome:
    """Post once, without following redirects or using proxies; only the response's head is read.

    `enter` is called with each address before the connection is made; its exceptions are raised.
    """
    text = json.dumps(payload, separators=(",", ":"))
    body, signed = text.encode(), sign(secrets, message_id, int(time.time()), text)
    timeouts = dict.fromkeys(("connect", "read", "write", "pool"), TIMEOUT_SECONDS)
    network = GuardedNetwork(allowed, TIMEOUT_SECONDS, enter)
    try:
        target = httpx.URL(url)
        headers: dict[bytes | str, bytes | str] = {
            "Host": target.netloc.decode(),
            "Content-Type": "application/json",
            "User-Agent": "Tuneyard",
        }
        place = httpcore.URL(scheme=target.raw_scheme, host=target.raw_host, port=target.port, target=target.raw_path)
        headers["Content-Length"] = str(len(body))
        headers.update(signed.items())
        with (
            httpcore.ConnectionPool(network_backend=network) as pool,
            pool.stream("POST", place, headers=headers, content=body, extensions={"timeout": timeouts}) as response,
        ):
            found = {name.lower(): value for name, value in response.headers}
            return CallOutcome(
                response.status, None, read_retry_after(found.get(b"retry-after", b"").decode("latin-1"))
            )
    except ForbiddenTarget as error:
        return CallOutcome(error=str(error))
    except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, OSError) as error:
        return CallOutcome(error=f"{describe_failure(error)}: {error}".rstrip(": ")[:ERROR_CHARACTERS])
    except (httpx.InvalidURL, httpcore.UnsupportedProtocol, UnicodeError) as error:
        return CallOutcome(error=f"the URL can't be used: {error}"[:ERROR_CHARACTERS])


def read_retry_after(value: str) -> float:
    """Seconds that a `Retry-After` header asks to wait: a number or an HTTP date; 0 for anything else."""
    if value.strip().isdecimal():
        return float(value.strip()[:9])
    try:
        moment = parsedate_to_datetime(value)
        seconds = (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    except (ValueError, OverflowError):  # not a date, or out of datetime's range
        return 0.0
    return max(0.0, seconds)


def sign(secrets: Iterable[str], message_id: str, timestamp: int, body: str) -> dict[str, str]:
    """The headers of an attempt at `timestamp` (epoch seconds): one signature for each secret, none without any.

    As Standard Webhooks (https://www.standardwebhooks.com) says.
    """
    headers = {"webhook-id": message_id, "webhook-timestamp": str(timestamp)}
    at = datetime.fromtimestamp(timestamp, UTC)
    if signatures := [Webhook(read_secret(secret)).sign(message_id, at, body) for secret in secrets]:
        headers["webhook-signature"] = " ".join(signatures)
    return headers
