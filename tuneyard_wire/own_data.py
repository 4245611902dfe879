"""Responses for datasets that users add: versions, their rows, and uploads in parts."""

from typing import Any

from pydantic import Field

from tuneyard_wire.response import Moment, Response, with_example

_VERSION = {
    "name": "support",
    "version": "v2",
    "reference": "support@v2",
    "filename": "data.jsonl",
    "format": "chat",
    "rows": 1200,
    "bad": 1,
    "duplicates": 3,
    "columns": ["messages"],
    "bad_rows": [{"row": 17, "reason": "messages must be a list, got 3"}],
    "reasons": [{"reason": "messages must be a list, got 3", "count": 1, "rows": [17]}],
    "bytes": 845312,
    "md5": "0f343b0931126a20f133d67c2b018a3b",
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "commit": "4f2c6a1c2b7b2d6a1a1c0f0a8f0d1f7c3c1b2a90",
    "created_at": "2026-04-05T16:29:40+00:00",
    "owner": None,
}


class BadRow(Response):
    """A row that can't be used, by its number in the file, from 1."""

    row: int
    reason: str


class BadReason(Response):
    """A reason why rows are bad, with the first of them."""

    reason: str
    count: int
    rows: list[int]


class DatasetVersion(Response):
    """A version of a dataset that was added. Jobs name it by its `reference`.

    `format` is null if none is known for its columns, as of text in a column that `dataset_text_field` has to name, and
    `auto` if its rows are of several.
    """

    model_config = with_example(**_VERSION)

    name: str
    version: str
    reference: str
    filename: str
    format: str | None
    rows: int
    bad: int = Field(description="Rows that can't be used; a job leaves them out.")
    duplicates: int = Field(description="Rows with the content of an earlier one.")
    columns: list[str]
    bad_rows: list[BadRow] = Field(description="The first 20.")
    reasons: list[BadReason] = Field(description="The first 20.")
    bytes: int
    md5: str
    sha256: str
    commit: str
    created_at: Moment
    owner: str | None = None


class AddedDataset(DatasetVersion):
    """The version that a file is. `is_new` is false if the dataset had this content before."""

    model_config = with_example(**_VERSION, is_new=True)

    is_new: bool


class Dataset(Response):
    """A dataset that was added, with all its versions, oldest first."""

    model_config = with_example(name="support", versions=[_VERSION])

    name: str
    versions: list[DatasetVersion]


class DeletedDataset(Response):
    """What was deleted."""

    model_config = with_example(deleted=["support@v2"])

    deleted: list[str]


class TextPart(Response):
    """A piece of a rendered row; the loss is taken on supervised ones."""

    text: str
    supervised: bool


class ShownRow(Response):
    """A row of a dataset: its values, or why they are not shown, and its text as the chat template writes it."""

    row: int
    values: dict[str, Any] | None
    problem: str | None
    rendered: list[TextPart] | None


class ShownRows(Response):
    """The first rows of a dataset."""

    model_config = with_example(
        reference="support@v2",
        rows=[
            {
                "row": 1,
                "values": {"instruction": "Say hello.", "output": "Hello."},
                "problem": None,
                "rendered": [
                    {"text": "<|im_start|>user\nSay hello.<|im_end|>\n<|im_start|>assistant\n", "supervised": False},
                    {"text": "Hello.<|im_end|>", "supervised": True},
                ],
            }
        ],
    )

    reference: str
    rows: list[ShownRow]


class UploadedPart(Response):
    """A part that has arrived."""

    number: int
    bytes: int
    sha256: str


class Upload(Response):
    """An upload in parts. It is removed at `expires_at` unless it is completed before."""

    model_config = with_example(
        upload_id="7d1a3f0e5b6c4c0f9c2d1e0f3a4b5c6d",
        filename="data.jsonl",
        name="support",
        bytes=845312,
        parts=[{"number": 1, "bytes": 845312, "sha256": _VERSION["sha256"]}],
        expires_at="2026-04-06T16:29:40+00:00",
    )

    upload_id: str
    filename: str
    name: str | None
    bytes: int
    parts: list[UploadedPart]
    expires_at: Moment
