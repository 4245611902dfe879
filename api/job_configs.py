"""How the OpenAPI document shows the configuration of a job, which the wire models know as plain values only."""

from typing import Any

from pydantic import BaseModel, ConfigDict, create_model

from api.request_fields import wire_fields
from api.training_request import TrainingRequest
from sft.config import SFTConfig

Schemas = dict[str, Any]


class UnreadConfig(BaseModel):
    """What a job that was made elsewhere, such as in the Prefect UI, has for a configuration that is not valid."""

    model_config = ConfigDict(extra="allow")


# A job's effective values: the fields of a request, but for those that stand beside `config`.
TrainConfig: type[BaseModel] = create_model(  # type: ignore[call-overload]  # which knows no fields made at run time
    "TrainConfig",
    __config__=ConfigDict(protected_namespaces=()),
    __doc__="The effective values of a job, in the Training API's words.",
    **{
        name: (field.annotation, ...)
        for name, field in wire_fields(TrainingRequest).items()
        if name not in ("metadata", "priority", "logging_backend")
    },
)


def show_configs(schemas: Schemas) -> None:
    """Name the fields of the configuration in the schemas of both interfaces' jobs."""
    for job, config in (("TrainJob", TrainConfig), ("SftJob", SFTConfig)):
        for model in (config, UnreadConfig):
            schemas[model.__name__] = model.model_json_schema(mode="serialization")
        shown = schemas[job]["properties"]["config"]
        for name in ("type", "additionalProperties"):
            shown.pop(name)
        shown["anyOf"] = [{"$ref": f"#/components/schemas/{model.__name__}"} for model in (config, UnreadConfig)]
