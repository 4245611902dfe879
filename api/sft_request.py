"""Request bodies of the SFT API, and their translation to a `JobSpec`."""

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

ConfigFields: type[BaseModel] = create_model(  # type: ignore[call-overload]  # fields made at run time
    "ConfigFields",
    __base__=RequestFields,
    __doc__="The fields of SFTConfig: at least the required ones, or with config_id those to change.",
    **{name: request_field(name, is_optional=True) for name in SFTConfig.model_fields},
)


def _show_rules(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Add the options' rules to the schema, and: a complete configuration, or changes to a saved one."""
    order_properties(schema, model)
    fields = ConfigFields.model_json_schema()
    properties = fields["properties"]
    rules = [rule.show(properties) for rule in CONFIG_RULES]
    required = [name for name, field in SFTConfig.model_fields.items() if field.is_required()]
    whole = {"properties": {"config": {"allOf": [fields, {"required": required}, *rules]}}, "required": ["config"]}
    schema["allOf"] = [rule.show(schema["properties"]) for rule in OPTION_RULES]
    schema["anyOf"] = [whole, {"properties": {"config_id": {"type": "string"}}, "required": ["config_id"]}]


class _ShownAsConfigFields:
    """Annotation of a mapping whose schema is ConfigFields. It is validated later, for better messages."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return ConfigFields.model_json_schema()


class _WithConfig(BaseModel, extra="forbid"):
    """Base of bodies whose fields of SFTConfig are inside `config`."""

    @model_validator(mode="before")
    @classmethod
    def _check_places(cls, values: Any) -> Any:
        if isinstance(values, dict):
            unknown = [name for name in values if name not in cls.model_fields]
            outside = [name for name in unknown if find_config_field(name) is not None]
            if outside:
                example = {find_config_field(name): values[name] for name in outside}
                shown = shorten(json.dumps({"config": example}, default=repr))
                raise ValueError(f"{', '.join(outside)}: put these fields into config: {shown}")
        return values


class TrainBody(SubmissionOptions, _WithConfig):
    """A job: its configuration and its options."""

    model_config = ConfigDict(json_schema_extra=_show_rules)

    config: Annotated[dict[str, Any], _ShownAsConfigFields()] | None = Field(
        None, description="The fields of SFTConfig; they override config_id's if that is set."
    )
    config_id: Name | None = Field(None, description="Start from this saved configuration.")

    @model_validator(mode="after")
    def _check_config(self) -> Self:
        if self.config is None and self.config_id is None:
            raise ValueError("config is required; give the fields of SFTConfig, or config_id")
        return self

    def to_spec(self, saved: SavedConfig | None) -> JobSpec:
        """Build the spec of the requested job. Raises InvalidConfig, InvalidSavedConfig or TemplateNotFound."""
        config = _build_config(self.config or {}, saved)
        origin = (
            SavedConfigRef(config_id=str(saved.config_id), version=saved.version, name=saved.name) if saved else None
        )
        options = {name: getattr(self, name) for name in JobOptions.model_fields}
        return JobSpec.build(config=config, saved_config=origin, **options)


BESIDE_CONFIG = {name for name in TrainBody.model_fields if name != "config"}


class _KeysOfConfig:
    """Annotation of a mapping whose schema has SFTConfig's fields as keys and any values."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(core), "propertyNames": {"enum": [*SFTConfig.model_fields]}}


PartialConfig = Annotated[dict[str, Any], _KeysOfConfig()]  # `jobs.clients.configs` rejects other names


class ConfigBody(_WithConfig):
    """A configuration to save. It may be partial; its values are validated when a job is started."""

    name: Name = Field(min_length=1)
    config: PartialConfig


class ConfigChange(_WithConfig):
    """Changes to a saved configuration; the fields of `config` override the current ones."""

    name: Name | None = Field(None, min_length=1)
    config: PartialConfig | None = None


def find_config_field(name: str) -> str | None:
    """Find the field of SFTConfig with this name or alias; None if there is none."""
    if name in SFTConfig.model_fields:
        return name
    same = next((words for words in SAME if name in words), frozenset())
    return next((field for field in SFTConfig.model_fields if field in same), None)


def _build_config(given: dict[str, Any], saved: SavedConfig | None) -> SFTConfig:
    if beside := [name for name in given if name in BESIDE_CONFIG]:
        raise InvalidConfig(f"{', '.join(beside)}: must be next to config, not inside it")
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
