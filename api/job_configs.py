"""Add a job's configuration to the OpenAPI document; the wire models have it as plain values only."""

from typing import Any

from pydantic import BaseModel, ConfigDict, create_model

from api.request_fields import wire_fields
from api.training_request import TrainingRequest
from sft.config import SFTConfig

Schemas = dict[str, Any]


class UnreadConfig(BaseModel):
    """The invalid configuration of a job that was created elsewhere, such as in the Prefect UI."""

    model_config = ConfigDict(extra="allow")


# A job's effective values: the fields of a request but those outside `config`.
TrainConfig: type[BaseModel] = create_model(  # type: ignore[call-overload]  # fields made at run time
    "TrainConfig",
    __config__=ConfigDict(protected_namespaces=()),
    __doc__="The effective values of a job, with the Training API's field names.",
    **{
        name: (field.annotation, ...)
        for name, field in wire_fields(TrainingRequest).items()
        if name not in ("metadata", "priority", "logging_backend")
    },
)


def show_configs(schemas: Schemas) -> None:
    """Add the configuration's fields to the job schemas of both APIs."""
    for job, config in (("TrainJob", TrainConfig), ("SftJob", SFTConfig)):
        for model in (config, UnreadConfig):
            schemas[model.__name__] = model.model_json_schema(mode="serialization")
        shown = schemas[job]["properties"]["config"]
        for name in ("type", "additionalProperties"):
            shown.pop(name)
        shown["anyOf"] = [{"$ref": f"#/components/schemas/{model.__name__}"} for model in (config, UnreadConfig)]
