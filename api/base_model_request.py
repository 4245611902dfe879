"""The request body that announces the files of a base model."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field

from jobs.base_models.announcing import AnnouncedFile
from sft.explanations import Matching
from tuneyard_wire.model_folder import MAX_FILES, MODEL_FILE, MODEL_NAME, MODEL_NAME_RULE

MOST_BYTES = 2**50
ModelName = Annotated[
    str,
    Matching(f"^{MODEL_NAME}$", MODEL_NAME_RULE),
]
FilePath = Annotated[
    str,
    Matching(
        f"^{MODEL_FILE}$",
        "must be a file of a base model: *.safetensors, *.json, *.jinja, *.txt, *.model, README.md or a licence, in no "
        "folder but additional_chat_templates",
    ),
]
Digest = Annotated[str, Matching("^[0-9a-f]{64}$", "must be a SHA-256 of 64 lower-case hexadecimal digits")]


def _check_number(value: Any) -> Any:
    """Refuse text and booleans, which would be converted."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be a whole number")
    return value


class NewModelFile(BaseModel, extra="forbid"):
    """A file that will be uploaded."""

    path: FilePath = Field(description="Its name, of a chat template beside the main one with its folder.")
    bytes: Annotated[int, BeforeValidator(_check_number)] = Field(ge=0, le=MOST_BYTES)
    sha256: Digest = Field(description="Of its content.")


class NewModel(BaseModel, extra="forbid"):
    """A base model that will be uploaded: `config.json`, safetensors, tokenizer."""

    name: ModelName
    files: list[NewModelFile] = Field(min_length=2, max_length=MAX_FILES)

    def announced(self) -> list[AnnouncedFile]:
        """The files, for the upload."""
        return [AnnouncedFile(file.path, file.bytes, file.sha256) for file in self.files]
