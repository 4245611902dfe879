"""The files of a base model that will be uploaded, and what they must be."""

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.errors import InvalidUpload
from tuneyard_wire.model_folder import CONFIG, MAX_FILES, is_file_name


@dataclass(frozen=True)
class AnnouncedFile:
    """A file that will be uploaded."""

    path: str
    bytes: int
    sha256: str


def check_files(files: Sequence[AnnouncedFile]) -> None:
    """Raise InvalidUpload unless these can be the files of a base model."""
    paths = [file.path for file in files]
    if len(paths) > MAX_FILES:
        raise InvalidUpload(f"files: a base model has at most {MAX_FILES}, got {len(paths)}")
    if refused := next((path for path in paths if not is_file_name(path)), None):
        raise InvalidUpload(
            f"files: {refused!r:.200} is not a file of a base model: *.safetensors, *.json, *.jinja, *.txt, *.model, "
            "README.md or a licence, in no folder but additional_chat_templates"
        )
    if len({path.lower() for path in paths}) < len(paths):
        raise InvalidUpload("files: two have the same name, or names that differ in case alone")
    if CONFIG not in paths:
        raise InvalidUpload(f"files: {CONFIG} is missing; a base model is a folder in transformers' format")
    if not any(path.endswith(".safetensors") for path in paths):
        raise InvalidUpload("files: there are no weights (*.safetensors)")
