"""The base class of responses, and types that many of their fields have."""

from copy import deepcopy
from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, WithJsonSchema

# The years 1 to 9999 less a day at each end, so that every time zone can represent them.
EARLIEST, LATEST = -62135510400, 253402214400


def _check_moment(moment: datetime) -> datetime:
    try:
        is_inside = EARLIEST <= moment.timestamp() <= LATEST
    except (ValueError, OverflowError):  # a time without zone is converted from local time
        is_inside = False
    if not is_inside:
        raise ValueError("outside the years 1 to 9999")
    return moment


def _write_moment(moment: Any) -> str:
    """Format a time. A value of another type, from an invalid record, is kept."""
    return moment.isoformat() if isinstance(moment, datetime) else str(moment)


Id = Annotated[str, WithJsonSchema({"type": "string", "format": "uuid"})]
Moment = Annotated[
    datetime,
    AfterValidator(_check_moment),
    PlainSerializer(_write_moment, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
EpochSeconds = Annotated[float, Field(ge=EARLIEST, le=LATEST)]


class Response(BaseModel):
    """Base class of responses. Fields that a newer service adds are kept as attributes.

    Fields that an older service does not send have defaults; the current one sends all fields.
    """

    model_config = ConfigDict(
        extra="allow",
        frozen=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        serialize_by_alias=True,
        json_schema_serialization_defaults_required=True,
    )

    @classmethod
    def example(cls) -> dict[str, Any]:
        """The model's example in the OpenAPI document."""
        extra: Any = cls.model_config["json_schema_extra"]
        return deepcopy(extra["examples"][0])


def with_example(**example: Any) -> ConfigDict:
    """Build a model configuration with an example for the OpenAPI document."""
    return ConfigDict(json_schema_extra={"examples": [example]})


def one_of(*documented: str) -> WithJsonSchema:
    """Annotation of a text with its documented values. Clients also accept the values of a newer service."""
    return WithJsonSchema({"type": "string", "enum": [*documented]})
