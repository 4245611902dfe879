"""Requests for files and uploads, in the fields of OpenAI's."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from api.multipart import invalid_form
from api.openai.answer_request import check_number
from sft.config import LIST_ENTRIES
from sft.explanations import Matching
from tuneyard_wire.openai_files import FINE_TUNE

PURPOSE = {
    "type": "string",
    "enum": [FINE_TUNE],
    "description": "`fine-tune`: rows to train or to evaluate on.",
}
FILE_FORM = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file", "purpose"],
                "additionalProperties": False,
                "properties": {
                    "file": {
                        "type": "string",
                        "format": "binary",
                        "description": "Rows: JSON Lines, or what another suffix of its name says, as of `/datasets`.",
                    },
                    "purpose": PURPOSE,
                },
            }
        }
    },
}
PART_FORM = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["data"],
                "additionalProperties": False,
                "properties": {
                    "data": {"type": "string", "format": "binary", "description": "At most 64 MiB of the file."}
                },
            }
        }
    },
}


def _check_printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must have printable characters only")
    return text


Bytes = Annotated[int, Field(gt=0, le=2**53), BeforeValidator(check_number)]
Filename = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_check_printable)]
Md5 = Annotated[str, Matching("^[0-9a-fA-F]{32}$", "must be an MD5 in 32 hexadecimal digits")]


class FileUploadRequest(BaseModel):
    """A file that will be sent in parts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: Bytes = Field(description="Size of the whole file.")
    filename: Filename = Field(description="A suffix says what the file is; JSON Lines without a known one.")
    mime_type: str = Field(max_length=200, description="Accepted, and without effect.")
    purpose: Literal["fine-tune"] = Field(description="Rows to train or to evaluate on.")


class UploadCompletion(BaseModel):
    """The order of an upload's parts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    part_ids: list[Annotated[str, Field(max_length=100)]] = Field(min_length=1, max_length=LIST_ENTRIES)
    md5: Md5 | None = Field(None, description="Of the whole file; checked if given.")


def check_purpose(purpose: str | None) -> None:
    """Raise RequestValidationError unless a form has the one purpose that there is."""
    if purpose != FINE_TUNE:
        got = "it is missing" if purpose is None else f"got {purpose!r:.80}"
        raise invalid_form(
            f"must be {FINE_TUNE!r}, as this service keeps rows to train and evaluate on; {got}", "purpose"
        )
