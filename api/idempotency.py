"""The `Idempotency-Key` header: a repeated request gets the first response and creates no second job."""

import hashlib
import json
from typing import Annotated

from fastapi import Header, Request
from fastapi.exceptions import RequestValidationError

from jobs.clients.idempotency import RequestKey

MAX_CHARACTERS = 255


async def read_request_key(
    request: Request,
    idempotency_key: Annotated[
        str | None,
        Header(
            json_schema_extra={"minLength": 1, "maxLength": MAX_CHARACTERS, "pattern": "^[ -~]+$"},
            description="A repeated key with the same body returns the first response and creates no second job; with "
            "another body it returns 422. Kept for 48 hours. 1 to 255 printable ASCII characters.",
        ),
    ] = None,
) -> RequestKey | None:
    """Read the key, scoped to endpoint and owner of jobs; None without the header. Raises RequestValidationError."""
    if idempotency_key is None:
        return None
    is_printable = idempotency_key.isascii() and idempotency_key.isprintable()
    if not is_printable or not 1 <= len(idempotency_key) <= MAX_CHARACTERS:
        problem = f"must be 1 to {MAX_CHARACTERS} printable ASCII characters"
        raise RequestValidationError(
            [{"type": "value_error", "loc": ("header", "Idempotency-Key"), "msg": problem, "input": idempotency_key}]
        )
    client = getattr(request.state, "client", None)
    scope = f"{request.method} {request.scope['route'].path} {client.owner_id if client else ''}".strip()
    return RequestKey(scope, idempotency_key, hashlib.sha256(_canonical(await request.body())).hexdigest())


def _canonical(body: bytes) -> bytes:
    """Normalize JSON: sort keys and drop white space."""
    try:
        return json.dumps(json.loads(body), sort_keys=True, separators=(",", ":")).encode()
    except (ValueError, RecursionError):
        return body
