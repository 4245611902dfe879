"""Responses about base models and their uploads."""

from typing import Annotated

from pydantic import Field

from tuneyard_wire.response import Moment, Response, one_of, with_example

PIECE_BYTES = 2**24  # that the client sends at once

_MODEL = {
    "name": "local/support-base",
    "architecture": "LlamaForCausalLM",
    "parameters": 134515008,
    "dtype": "BF16",
    "positions": 8192,
    "has_chat_template": True,
    "bytes": 272410624,
    "path": "/srv/tuneyard/models/local/support-base",
    "kind": "copy",
    "added_at": "2026-04-05T16:20:51.118000+00:00",
    "owner": None,
    "problem": None,
}


class Model(Response):
    """A base model that jobs can name as `model_name` or `base_model`."""

    model_config = with_example(**_MODEL)

    name: str
    architecture: str | None = Field(None, description="From config.json; null if that can't be read.")
    parameters: int | None = Field(None, description="Numbers in the weight files; null if they can't be read.")
    dtype: str | None = Field(None, description="safetensors' name of the dtype of most of them, such as BF16.")
    positions: int | None = Field(None, description="Longest sequence in tokens that config.json allows.")
    has_chat_template: bool = Field(False, description="Whether `template: auto` can be used.")
    bytes: int = Field(description="Size of all files.")
    path: str = Field(description="Where its files are, on the service's machine.")
    kind: Annotated[str, one_of("copy", "link")] = Field(
        description="`link`: the files are elsewhere, at `path`, and changes there change the model."
    )
    added_at: Moment | None = Field(None, description="Null for a model that was put into the model root by hand.")
    owner: str | None = Field(None, description="Id of the API key that added it.")
    problem: str | None = Field(None, description="Why no job can train it; null if nothing is known.")


class Models(Response):
    """The base models in the service's model root."""

    model_config = with_example(models=[_MODEL], root_id="0b8d3c526a0e4a539a4e3c1d3d1f6a77")

    models: list[Model]
    root_id: str | None = Field(
        None, description="Identifies the model root and its machine: a client that sees the same one need not upload."
    )


class UploadedFile(Response):
    """A file of an upload."""

    model_config = with_example(path="model.safetensors", bytes=269060552, received_bytes=33554432, complete=False)

    path: str
    bytes: int
    received_bytes: int = Field(description="Where the next piece begins.")
    complete: bool = Field(description="It is there, and its SHA-256 is the announced one.")


class ModelUpload(Response):
    """The upload of a base model. Its files may be sent in any order, in pieces, and again after a failure."""

    model_config = with_example(
        upload_id="5b1c0c1f3a0e4d7f9f2d6c6f3a8e9b10",
        name="local/support-base",
        complete=False,
        files=[UploadedFile.example()],
    )

    upload_id: str
    name: str
    complete: bool = Field(description="The model is published.")
    files: list[UploadedFile]
