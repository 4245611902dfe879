"""Types of request fields in both APIs: they validate values and document the rules in the OpenAPI document.

JSON types are not converted: no number from text, no boolean from a number. Only the learning rate may be text, as
the Training API documents.
"""

import re
from collections.abc import Mapping
from functools import cache
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    WithJsonSchema,
    model_validator,
)
from pydantic.fields import FieldInfo

from jobs.spec import SubmissionOptions
from sft.chat.templates import list_templates
from sft.config import LIST_ENTRIES, Amount, Name, PathText, SFTConfig
from sft.explanations import Matching
from sft.rules import Rule, Schema
from sft.sources import References, Sources, settle_split

# An Amount greater than 0.
POSITIVE_NUMBER = r"^(0*[1-9][0-9]{0,8}(\.[0-9]{0,30})?|[0-9]{1,8}\.[0-9]{0,30}[1-9])([eE]-[0-9]{1,2})?$"


def _read_number(value: Any) -> Any:
    if isinstance(value, str):
        if not re.fullmatch(POSITIVE_NUMBER, value):
            raise ValueError("must be a number greater than 0")
        return float(value)
    return value


_NUMBER_OR_TEXT = {
    "anyOf": [
        {"type": "number", "exclusiveMinimum": 0, "maximum": 1e9},
        {"type": "string", "pattern": POSITIVE_NUMBER},
    ]
}
LearningRate = Annotated[Amount, BeforeValidator(_read_number), WithJsonSchema(_NUMBER_OR_TEXT)]
ModelId = Annotated[PathText, Matching(r"\S", "must not be blank")]
TemplateName = Annotated[
    Name, WithJsonSchema({"type": "string", "enum": list_templates()})
]  # an error names the nearest
ModuleList = Annotated[list[Name], Field(max_length=LIST_ENTRIES, json_schema_extra={"minItems": 1})]  # `sft.config`
ModuleText = Annotated[str, Matching(r"[^,\s]", "must name a layer, or be left out for all linear ones")]
_ALSO_TEXT = {"learning_rate"}
_OPTIONS = SubmissionOptions.model_fields
_TYPES: dict[str, Any] = {
    "base_model": ModelId,
    "dataset_name": ModelId | Sources,
    "validation_dataset": ModelId | References | None,
    "template_name": TemplateName,
    "learning_rate": LearningRate,
    "lora_target_modules": ModuleList | ModuleText | None,
}


class RequestFields(BaseModel):
    """Base of requests, whose numbers must be JSON numbers; 4.0 is an integer too."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _check_types(cls, values: Any) -> Any:
        given = values.items() if isinstance(values, dict) else ()
        fields = wire_fields(cls)
        problems = [
            f"{name}: must be a number, got {value!r}"
            for name, value in given
            if name in fields and not _is_allowed(value, name, fields[name].annotation)
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return settle_split(values)


@cache
def wire_fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a request by their names in JSON: configuration first, then options."""
    fields = sorted(model.model_fields.items(), key=lambda item: item[0] in _OPTIONS)
    return {field.alias or name: field for name, field in fields}


def _is_allowed(value: Any, name: str, annotation: Any) -> bool:
    """Whether a field's value has an allowed JSON type; False for text or a boolean in place of a number."""
    kinds = _kinds(annotation)
    if not kinds & {int, float}:
        return True
    is_text = isinstance(value, str) and str not in kinds and name not in _ALSO_TEXT
    return not is_text and not isinstance(value, bool)


def _kinds(annotation: Any) -> set[Any]:
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return {kind for part in get_args(annotation) for kind in _kinds(part)}
    return {annotation}


def request_field(name: str, is_optional: bool = False) -> tuple[Any, FieldInfo]:
    """Type and description of a field of SFTConfig in a request."""
    field = SFTConfig.model_fields[name]
    if is_optional and field.is_required():
        field = FieldInfo.merge_field_infos(field, default=None)
    return _TYPES.get(name) or _with_strict_bool(field.annotation), field


def _with_strict_bool(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, UnionType):
        return Union[tuple(_with_strict_bool(part) for part in get_args(annotation))]  # noqa: UP007 - of a tuple
    return Annotated[bool, Strict()] if annotation is bool else annotation


def with_rules(*rules: Rule, names: Mapping[str, str] | None = None) -> ConfigDict:
    """Build a model configuration that adds rules between fields to the schema.

    Args:
        names: Names in requests of the rules' fields, where they differ.
    """

    def add(schema: Schema, model: type[BaseModel]) -> None:
        order_properties(schema, model)
        schema["allOf"] = [rule.show(schema["properties"], names or {}) for rule in rules]

    return ConfigDict(json_schema_extra=add)


def order_properties(schema: Schema, model: type[BaseModel]) -> None:
    """Order a schema's properties as `wire_fields` does; pydantic puts inherited fields first."""
    schema["properties"] = {name: schema["properties"][name] for name in wire_fields(model)}
