"""A job put together from a file, flags and `--set`, in whichever of the two dialects the file speaks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from tuneyard_client import Tuneyard
    from tuneyard_client.models import Submitted

# The SFT API's name of a field, where it differs from the Training API's.
SFT_NAMES = {
    "model_name": "base_model",
    "dataset_version": "dataset_name",
    "template": "template_name",
    "cutoff_len": "max_seq_length",
    "lora_name": "adapter_name",
}
AROUND_CONFIG = (
    "adapter_name",
    "tracking_backend",
    "webhook_url",
    "webhook_events",
    "metadata",
    "priority",
    "config_id",
)
_SFT_MARKS = ("config", "config_id", "base_model", "dataset_name", "dataset_format")


@dataclass(frozen=True)
class Submission:
    """A job before it is sent. `around`: what the SFT API takes beside `config`; empty in the Training API's words."""

    dialect: Literal["training", "sft"]
    fields: Mapping[str, Any]
    around: Mapping[str, Any] = field(default_factory=dict)

    def send(self, client: "Tuneyard", strategy: Literal["queue", "reject"]) -> "Submitted":
        """Make the job."""
        if self.dialect == "training":
            return client.submit(self.fields, strategy)
        return client.sft(self.fields, **self.around)


def build_submission(
    file: Mapping[str, Any], flags: Mapping[str, Any], settings: Mapping[str, Any], config_id: str | None = None
) -> Submission:
    """Join what a user gave; the later of file, flags and settings wins.

    Args:
        file: Fields of either dialect, or a whole body of `POST /api/sft/train`.
        flags: Fields in the Training API's words; None where a flag was not given.
        settings: `--set`: fields of the dialect that the file speaks.
        config_id: A saved configuration to start from; the other fields override its own.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    if config_id is None and not any(mark in {**file, **settings} for mark in _SFT_MARKS):
        return Submission("training", {**file, **given, **settings})
    translated = {SFT_NAMES.get(name, name): value for name, value in given.items()}
    nested = file.get("config")
    inside = dict(nested) if isinstance(nested, Mapping) else {}
    values = {**inside, **{k: v for k, v in file.items() if k != "config"}, **translated, **settings}
    if config_id is not None:
        values["config_id"] = config_id
    around = {name: values.pop(name) for name in AROUND_CONFIG if name in values}
    return Submission("sft", values, around)
