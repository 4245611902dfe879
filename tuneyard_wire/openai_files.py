"""OpenAI's files and uploads, as its clients read them."""

from typing import Annotated, Literal

from pydantic import Field

from tuneyard_wire.response import Response, one_of, with_example

FINE_TUNE = "fine-tune"

_ID = "file-4f2c6a1c2b7b2d6a1a1c0f0a"
_UPLOAD_ID = "upload_7d1a3f0e5b6c4c0f9c2d1e0f3a4b5c6d"


class OpenAIFile(Response):
    """A file of rows: a version of a dataset, which jobs may name by either, or one whose rows could not be read."""

    model_config = with_example(
        id=_ID,
        object="file",
        bytes=845312,
        created_at=1796000000,
        filename="support.jsonl",
        purpose=FINE_TUNE,
        status="processed",
        status_details=None,
        expires_at=None,
        dataset="support@v2",
    )

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int = Field(description="Seconds since 1970.")
    filename: str
    purpose: str = FINE_TUNE
    status: Annotated[str, one_of("processed", "error")] = Field(
        description="`error` if its rows can't be read, which `status_details` explains."
    )
    status_details: str | None = Field(description="Why its rows, or some of them, can't be used.")
    expires_at: int | None = Field(None, description="Null: files are kept until they are deleted.")
    dataset: str | None = Field(None, description="`NAME@VERSION` of the dataset; null if the content is not kept.")


class OpenAIFiles(Response):
    """A page of files."""

    model_config = with_example(object="list", data=[OpenAIFile.example()], first_id=_ID, last_id=_ID, has_more=False)

    object: Literal["list"] = "list"
    data: list[OpenAIFile]
    first_id: str | None
    last_id: str | None
    has_more: bool


class OpenAIFileDeleted(Response):
    """A file that was deleted."""

    model_config = with_example(id=_ID, object="file", deleted=True)

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class OpenAIUpload(Response):
    """A file that arrives in parts."""

    model_config = with_example(
        id=_UPLOAD_ID,
        object="upload",
        bytes=845312,
        created_at=1796000000,
        expires_at=1796086400,
        filename="support.jsonl",
        purpose=FINE_TUNE,
        status="completed",
        file=OpenAIFile.example(),
    )

    id: str
    object: Literal["upload"] = "upload"
    bytes: int = Field(description="Size of the whole file.")
    created_at: int = Field(description="Seconds since 1970.")
    expires_at: int = Field(description="Seconds since 1970.")
    filename: str
    purpose: str = FINE_TUNE
    status: Annotated[str, one_of("pending", "completed", "cancelled", "expired")]
    file: OpenAIFile | None = Field(None, description="With status `completed`, unless it was deleted.")


class OpenAIUploadPart(Response):
    """A part of an upload."""

    model_config = with_example(
        id="part_9f86d081884c7d659a2feaa0c55ad015",
        object="upload.part",
        created_at=1796000000,
        upload_id=_UPLOAD_ID,
    )

    id: str = Field(description="The same content has the same id within its upload.")
    object: Literal["upload.part"] = "upload.part"
    created_at: int = Field(description="Seconds since 1970.")
    upload_id: str
