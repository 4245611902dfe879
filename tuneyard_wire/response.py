"""The base of every response, and the types that most of them have fields of."""

from copy import deepcopy
from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, WithJsonSchema

# A day within the years 1 to 9999, so that every time zone has them.
EARLIEST, LATEST = -62135510400, 253402214400


def _check_moment(moment: datetime) -> datetime:
    try:
        is_inside = EARLIEST <= moment.timestamp() <= LATEST
    except (ValueError, OverflowError):  # without a zone it is of this machine's
        is_inside = False
    if not is_inside:
        raise ValueError("outside the years 1 to 9999")
    return moment


def _write_moment(moment: Any) -> str:
    """What is not a time, in a record that does not fit, stays as it is."""
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
    """Base of every response. Fields that a newer service adds are kept as attributes.

    Fields have defaults where an older service did not send them; the present one sends every field.
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
        """The example that the OpenAPI document shows."""
        extra: Any = cls.model_config["json_schema_extra"]
        return deepcopy(extra["examples"][0])


def with_example(**example: Any) -> ConfigDict:
    """Configuration of a model with an example of it, for the OpenAPI document."""
    return ConfigDict(json_schema_extra={"examples": [example]})


def words(*documented: str) -> WithJsonSchema:
    """Annotation of a text: the words that are documented. A client takes those of a newer service too."""
    return WithJsonSchema({"type": "string", "enum": [*documented]})
