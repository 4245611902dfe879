"""Datasets of a job that has several: their names and weights, and labels for what is measured on each."""

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, WithJsonSchema, field_validator

MAX_SOURCES = 32
MAX_WEIGHT = 100
REFERENCE_CHARACTERS = 4096  # a file system's paths have no more
LABEL_CHARACTERS = 80
HIGHER_WEIGHT = "give it once, with a higher weight"
_OTHERWISE = "must be a dataset's name, or an object with its name and weight"

Reference = Annotated[str, Field(min_length=1, max_length=REFERENCE_CHARACTERS)]


class DatasetSource(BaseModel):
    """A dataset in a list: an epoch takes weight * rows of its training rows."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Reference
    weight: Annotated[float, Strict()] = Field(1.0, gt=0, le=MAX_WEIGHT)

    @field_validator("name")
    @classmethod
    def _strip(cls, name: str) -> str:
        if not name.strip():
            raise ValueError("must not be blank")
        return name.strip()


def _read_source(value: Any) -> Any:
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, dict | DatasetSource):
        raise ValueError(_OTHERWISE)
    return value


_NAME_SCHEMA = {"type": "string", "minLength": 1, "maxLength": REFERENCE_CHARACTERS, "pattern": r"\S"}
_WEIGHT_SCHEMA = {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_WEIGHT, "default": 1.0}
_SOURCE_SCHEMA = {
    "anyOf": [
        _NAME_SCHEMA,
        {
            "type": "object",
            "properties": {"name": _NAME_SCHEMA, "weight": _WEIGHT_SCHEMA},
            "required": ["name"],
            "additionalProperties": False,
        },
    ]
}
Source = Annotated[DatasetSource, BeforeValidator(_read_source), WithJsonSchema(_SOURCE_SCHEMA)]
Sources = Annotated[tuple[Source, ...], Field(min_length=1, max_length=MAX_SOURCES)]
References = Annotated[
    tuple[Annotated[Reference, WithJsonSchema(_NAME_SCHEMA)], ...], Field(min_length=1, max_length=MAX_SOURCES)
]


def check_different(names: Sequence[str], remedy: str) -> None:
    """Raise ValueError if a dataset is in a list twice, naming its places."""
    twice = next((name for name, times in Counter(names).items() if times > 1), None)
    if twice is not None:
        places = " and ".join(str(place) for place, name in enumerate(names) if name == twice)
        raise ValueError(f"must name each dataset once, {twice!r} is at the places {places}; {remedy}")


def find_alias(found: Iterable[tuple[str, str, Hashable]]) -> str | None:
    """Explain which names in a list mean the same content, as `good@v1` and `good@main` may; None if none do.

    Args:
        found: for each dataset its place (`dataset_name.0`), its name, and what is the same for the same content.
    """
    first: dict[tuple[str, Hashable], tuple[str, str]] = {}
    for field, name, content in found:
        group = field.partition(".")[0]
        before, other = first.setdefault((group, content), (field, name))
        if before != field:
            remedy = HIGHER_WEIGHT if group == "dataset_name" else "give it once"
            return f"{field}: {name!r} is the same content as {other!r} ({before}), which must be named once; {remedy}"
    return None


def settle_split(values: Any) -> Any:
    """Fields of a configuration, with a `validation_split` of 0 if a validation dataset is all that is given."""
    if isinstance(values, dict) and values.get("validation_dataset") is not None and "validation_split" not in values:
        return {**values, "validation_split": 0.0}
    return values


def pick_losses(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Of metrics `eval_loss`, and `eval_loss/<label>` of each dataset."""
    return {name: value for name, value in metrics.items() if name.split("/")[0] == "eval_loss"}


def label_datasets(names: Sequence[str]) -> list[str]:
    """A label for each name, all different, of letters, digits, `.`, `_` and `-`, as the names of metrics may have."""
    labels: list[str] = []
    for name in names:
        label = plain = re.sub(r"[^\w.-]+", "_", name)[-LABEL_CHARACTERS:].strip("._-") or "dataset"
        number = 2
        while label in labels:
            label, number = f"{plain}-{number}", number + 1
        labels.append(label)
    return labels
