"""OpenAI's error responses, sent for every path below `/v1`.

Clients retry 408, 409, 429 and 5xx, so what stays wrong gets 400.
"""

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from starlette.types import Scope

from sft.errors import ModelNotFound
from tuneyard_wire.openai import OpenAIError, OpenAIErrorBody

PREFIX = "/v1"
FINAL = {HTTPStatus.CONFLICT: HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY: HTTPStatus.BAD_REQUEST}
# Names of fields, not those that pydantic gives the alternatives of one: str, constrained-str, list[str], TextPart.
_FIELD = re.compile(r"(?!(?:str|int|float|bool|none|dict|list)\Z)[a-z][a-z0-9_]*")
_NAMED = re.compile(r"([a-z][a-z0-9_]*): ")  # how a rule for several fields begins
TYPES = {HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error"}  # of the others by their first digit


def is_openai(scope: Scope) -> bool:
    """Whether a request is for a path of OpenAI's interface."""
    path = str(scope["path"]).removeprefix(str(scope.get("root_path", "")))
    return path == PREFIX or path.startswith(f"{PREFIX}/")


def choose_status(status: int) -> int:
    """The status that OpenAI's clients understand."""
    return int(FINAL.get(HTTPStatus(status), status))


def write_error(status: int, detail: str, code: str, param: str | None = None) -> dict[str, Any]:
    """The body of an error response."""
    param = "model" if param is None and code == ModelNotFound.code else param
    kind = TYPES.get(HTTPStatus(status), "server_error" if status >= 500 else "invalid_request_error")
    return OpenAIError(error=OpenAIErrorBody(message=detail, type=kind, param=param, code=code)).model_dump()


def find_param(problems: Sequence[Mapping[str, Any]]) -> str | None:
    """The name of the first parameter that validation rejected, such as `messages[0].role`."""
    for problem in problems:
        _, *within = problem["loc"]
        names = [part for part in within if isinstance(part, int) or _FIELD.fullmatch(part)]
        name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in names).removeprefix(".")
        if name and problem["type"] != "json_invalid":
            return name[:200]
        if not names and (found := _NAMED.match(str(problem.get("ctx", {}).get("error", "")))):
            return found[1]
    return None
