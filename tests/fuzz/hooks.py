"""What schemathesis is told beyond the OpenAPI document. Every exception from its checks is here, with its reason."""

import os
import zlib
from typing import Any
from urllib.parse import quote

import httpx
import hypothesis.strategies as st
import schemathesis
import schemathesis.checks
from jsonschema import Draft202012Validator
from schemathesis.checks import CHECKS
from schemathesis.specs.openapi import checks

from tests.fuzz.rows import REAL, ROWS

# Answers to a valid request that does not fit what the service holds just then, which no schema can say.
FITS_NOT = {
    "idempotency_key_reused",  # this Idempotency-Key came with another body before: 422, as the IETF's draft has it
    "invalid_cursor",  # a place in a list that no answer has named
    "invalid_saved_config",  # the saved configuration a job shall start from is only partial
    "model_unusable",  # a plan names a model that another test has left, whose weights are none
    "invalid_prompt",  # one without a token, by the tokenizer of the model that is there
    "context_length_exceeded",  # a prompt and its answer are longer than the model that is there allows
    "job_conflict",  # cancelling a job that has ended: 400, as the Training API documents it
}


# Answers to a file that is no rows, has no suffix of a data file or is not whole, and to files that are no model: their
# content is not in the document.
DATA_PATHS = ("/datasets", "/models", "/v1/files", "/v1/uploads")
NO_DATA = {"invalid_dataset", "invalid_config", "invalid_upload", "invalid_request", "upload_too_large"}

# What single fields may not be together, and the rule of this option. As part of the document they are beyond the
# generator, which multiplies all alternatives out; so it does without them, and what breaks one is not sent.
WIDE_RULE = "shard_model"
EXCLUSIONS: list[Draft202012Validator] = []


@schemathesis.hook
def before_load_schema(ctx: Any, raw_schema: dict[str, Any]) -> None:
    """Take the exclusions out of the document."""
    found: dict[str, Any] = {}

    def is_exclusion(rule: dict[str, Any]) -> bool:
        return [*rule] == ["not"] or any(WIDE_RULE in one.get("properties", {}) for one in rule.get("anyOf", []))

    def take_out(part: Any) -> None:
        if isinstance(part, dict) and isinstance(rules := part.get("allOf"), list):
            found.update({str(rule): rule for rule in rules if is_exclusion(rule)})
            part["allOf"] = [rule for rule in rules if not is_exclusion(rule)]
        for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            take_out(inner)

    take_out(raw_schema)
    assert any(WIDE_RULE in text for text in found), f"no rule of {WIDE_RULE}; then the generator may have all"
    EXCLUSIONS[:] = [Draft202012Validator(rule) for rule in found.values()]


@schemathesis.hook
def filter_body(ctx: Any, body: Any) -> bool:
    """Whether the body, and the configuration in it, break no exclusion."""
    parts = [body, body.get("config")] if isinstance(body, dict) else []
    return all(rule.is_valid(part) for rule in EXCLUSIONS for part in parts if isinstance(part, dict))


def read_code(response: Any) -> str | None:
    """The code of an error, in either shape."""
    answer = response.json()
    return answer["error"]["code"] if "error" in answer else answer["code"]


@CHECKS.register
def positive_data_acceptance(ctx: Any, response: Any, case: Any) -> bool | None:
    """The check of this name, but for answers of `FITS_NOT`, and for jobs that `strict` refuses: no model is here."""
    if response.status_code in (400, 422) and response.text and read_code(response) in FITS_NOT:
        return None
    if response.status_code in (400, 422) and not filter_body(ctx, case.body):  # a dictionary's value has completed it
        return None
    is_of_data = case.operation.path.startswith(DATA_PATHS) and response.status_code in (400, 413, 422)
    if is_of_data and response.text and read_code(response) in NO_DATA:
        return None
    if response.status_code in (400, 404, 422) and "turn strict off" in response.text:  # HEAD has no body
        return None
    return checks.positive_data_acceptance(ctx, response, case)


@CHECKS.register
def not_a_server_error(ctx: Any, response: Any, case: Any) -> bool | None:
    """The check of this name, but for `/ready`: 503 is its answer while the work pool is paused, as it is here.

    An upload that announces more than fits on the disk gets 507.
    """
    if (
        case.operation.path in ("/datasets/uploads", "/models", "/v1/uploads")
        and response.status_code == httpx.codes.INSUFFICIENT_STORAGE
    ):
        return None
    if case.operation.path == "/ready" and response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
        return None
    return schemathesis.checks.not_a_server_error(ctx, response, case)


@CHECKS.register
def use_after_free(ctx: Any, response: Any, case: Any) -> bool | None:
    """The check of this name, but for jobs: DELETE cancels a job, and what has become of it stays to be read."""
    if case.operation.path.startswith("/train"):
        return None
    return checks.use_after_free(ctx, response, case)


@schemathesis.hook
def before_call(ctx: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """What is followed goes on until its job has ended, and these jobs wait for ever: end the job, or do not follow."""
    if case.operation.path.endswith("/events"):
        job_id = quote(str(case.path_parameters["job_id"]), safe="")
        httpx.delete(f"{case.operation.schema.get_base_url().rstrip('/')}/train/{job_id}", timeout=60)
    if case.operation.path.endswith("/logs") and str((case.query or {}).get("follow")).lower() in ("true", "1", "on"):
        case.query["follow"] = "false"  # its last lines are waited for, for seconds, after the end too


@schemathesis.hook("before_call")
def send_rows(ctx: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Of every two valid requests with a file, send one with rows, so that there is something to go on with."""
    if REAL not in os.environ or case.meta is None or not case.meta.generation.mode.is_positive:
        return
    path, body = case.operation.path, case.body
    drawn = zlib.crc32(repr(body).encode())
    if case.method.upper() not in ("POST", "PUT") or drawn % 2:
        return
    if path in ("/datasets", "/v1/files") and isinstance(body, dict):
        kwargs["files"] = {"file": (f"fuzz-{drawn // 2 % 3}.jsonl", ROWS)}
        kwargs["data"] = {"purpose": "fine-tune"} if path == "/v1/files" else {}
    elif path == "/v1/uploads/{upload_id}/parts":
        kwargs["files"] = {"data": ("part", ROWS)}
    elif path == "/datasets/uploads/{upload_id}/parts/{number}":
        kwargs["data"] = ROWS


# Addresses that a webhook may have; the generator's own are of every scheme there is. Nobody listens there.
schemathesis.openapi.format(
    "uri",
    st.builds("{}://127.0.0.1:{}/{}".format, st.sampled_from(["http", "https"]), st.integers(1, 1023), st.integers()),
)
