"""The bodies of the SFT API, and the job that `POST /api/sft/train` asks for."""

import json
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic_core import CoreSchema

from api.request_fields import RequestFields, order_properties, request_field
from jobs.errors import InvalidSavedConfig
from jobs.spec import OPTION_RULES, JobOptions, JobSpec, SavedConfigRef, SubmissionOptions
from jobs.storage.tables import SavedConfig
from sft.chat.templates import check_template_name
from sft.config import Name, SFTConfig
from sft.errors import InvalidConfig, TemplateNotFound
from sft.explanations import SAME, explain_validation_error, shorten
from sft.rules import CONFIG_RULES

ConfigFields: type[BaseModel] = create_model(  # type: ignore[call-overload]  # which knows no fields made at run time
    "ConfigFields",
    __base__=RequestFields,
    __doc__="The fields of SFTConfig: all that are required, or with config_id those to change.",
    **{name: request_field(name, is_optional=True) for name in SFTConfig.model_fields},
)


def _show_rules(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Of the options, and: a whole configuration, or changes to a saved one."""
    order_properties(schema, model)
    fields = ConfigFields.model_json_schema()
    properties = fields["properties"]
    rules = [rule.show(properties) for rule in CONFIG_RULES]
    required = [name for name, field in SFTConfig.model_fields.items() if field.is_required()]
    whole = {"properties": {"config": {"allOf": [fields, {"required": required}, *rules]}}, "required": ["config"]}
    schema["allOf"] = [rule.show(schema["properties"]) for rule in OPTION_RULES]
    schema["anyOf"] = [whole, {"properties": {"config_id": {"type": "string"}}, "required": ["config_id"]}]


class _OfConfig:
    """Annotation of a mapping that is shown as ConfigFields: who checks it names the fields by their own errors."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return ConfigFields.model_json_schema()


class _WithConfig(BaseModel, extra="forbid"):
    """Base of bodies whose fields of SFTConfig are inside `config`."""

    @model_validator(mode="before")
    @classmethod
    def _check_places(cls, values: Any) -> Any:
        if isinstance(values, dict):
            strangers = [name for name in values if name not in cls.model_fields]
            outside = [name for name in strangers if find_config_field(name) is not None]
            if outside:
                example = {find_config_field(name): values[name] for name in outside}
                shown = shorten(json.dumps({"config": example}, default=repr))
                raise ValueError(f"{', '.join(outside)}: put the fields of the configuration into config: {shown}")
        return values


class TrainBody(SubmissionOptions, _WithConfig):
    """A job: its configuration, and what to do around it."""

    model_config = ConfigDict(json_schema_extra=_show_rules)

    config: Annotated[dict[str, Any], _OfConfig()] | None = Field(
        None, description="The fields of SFTConfig; laid over config_id's if set."
    )
    config_id: Name | None = Field(None, description="Start from this saved configuration.")

    @model_validator(mode="after")
    def _check_config(self) -> Self:
        if self.config is None and self.config_id is None:
            raise ValueError("config is required; give the fields of SFTConfig, or config_id")
        return self

    def to_spec(self, saved: SavedConfig | None) -> JobSpec:
        """The job that is asked for. Raises InvalidConfig."""
        config = _build_config(self.config or {}, saved)
        origin = (
            SavedConfigRef(config_id=str(saved.config_id), version=saved.version, name=saved.name) if saved else None
        )
        options = {name: getattr(self, name) for name in JobOptions.model_fields}
        return JobSpec.build(config=config, saved_config=origin, **options)


BESIDE_CONFIG = {name for name in TrainBody.model_fields if name != "config"}


class _OfConfigFields:
    """Annotation of a mapping, for its schema: its keys are fields of SFTConfig, its values whatever they are."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(core), "propertyNames": {"enum": [*SFTConfig.model_fields]}}


PartialConfig = Annotated[dict[str, Any], _OfConfigFields()]  # `jobs.clients.configs` refuses other names


class ConfigBody(_WithConfig):
    """A configuration to keep; it may be partial, only starting a job validates its values."""

    name: Name = Field(min_length=1)
    config: PartialConfig


class ConfigChange(_WithConfig):
    """What to change about a saved configuration; the fields of `config` are laid over the present ones."""

    name: Name | None = Field(None, min_length=1)
    config: PartialConfig | None = None


def find_config_field(name: str) -> str | None:
    """The field of SFTConfig that has this name, or this other word for it."""
    if name in SFTConfig.model_fields:
        return name
    same = next((words for words in SAME if name in words), frozenset())
    return next((field for field in SFTConfig.model_fields if field in same), None)


def _build_config(given: dict[str, Any], saved: SavedConfig | None) -> SFTConfig:
    if beside := [name for name in given if name in BESIDE_CONFIG]:
        raise InvalidConfig(f"{', '.join(beside)}: goes beside config, not into it")
    try:
        ConfigFields.model_validate(given)
    except ValidationError as error:
        raise InvalidConfig(explain_validation_error(error, SFTConfig)) from error
    if "template_name" in given:
        check_template_name(given["template_name"])
    if saved is None:
        return SFTConfig.from_dict(given)
    try:
        config = SFTConfig.from_dict({**saved.config, **given})
        check_template_name(config.template_name)
    except (InvalidConfig, TemplateNotFound) as error:
        raise InvalidSavedConfig(f"{error}\n(in the saved configuration {saved.config_id})") from error
    return config
