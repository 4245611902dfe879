"""What both interfaces ask of a request's fields, as types that check it and say so in the OpenAPI document.

A value is of its JSON type: no number is read from text and no truth from a number, but for the learning rate, which
the Training API documents as a number or text.
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

# Of an Amount, greater than 0.
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
TemplateName = Annotated[Name, WithJsonSchema({"type": "string", "enum": list_templates()})]  # jobs name the nearest
ModuleList = Annotated[list[Name], Field(max_length=LIST_ENTRIES, json_schema_extra={"minItems": 1})]  # `sft.config`
ModuleText = Annotated[str, Matching(r"[^,\s]", "must name a layer, or be left out for all linear ones")]
_ALSO_TEXT = {"learning_rate"}
_OPTIONS = SubmissionOptions.model_fields
_TYPES: dict[str, Any] = {
    "base_model": ModelId,
    "dataset_name": ModelId,
    "template_name": TemplateName,
    "learning_rate": LearningRate,
    "lora_target_modules": ModuleList | ModuleText | None,
}


class RequestFields(BaseModel):
    """Base of requests whose numbers must be numbers; 4.0 is a whole one too."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _check_types(cls, values: Any) -> Any:
        given = values.items() if isinstance(values, dict) else ()
        fields = wire_fields(cls)
        problems = [
            f"{name}: must be a number, got {value!r}"
            for name, value in given
            if name in fields and not _may_be(value, name, fields[name].annotation)
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return values


@cache
def wire_fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a request by their names there: what is trained, then what is done around it."""
    fields = sorted(model.model_fields.items(), key=lambda item: item[0] in _OPTIONS)
    return {field.alias or name: field for name, field in fields}


def _may_be(value: Any, name: str, annotation: Any) -> bool:
    """Whether a number of this field, if it has numbers, may be given as this value."""
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
    """Type and description of a field of SFTConfig as a request must give it, if it must."""
    field = SFTConfig.model_fields[name]
    if is_optional and field.is_required():
        field = FieldInfo.merge_field_infos(field, default=None)
    return _TYPES.get(name) or _strict_about_truth(field.annotation), field


def _strict_about_truth(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, UnionType):
        return Union[tuple(_strict_about_truth(part) for part in get_args(annotation))]  # noqa: UP007 - of a tuple
    return Annotated[bool, Strict()] if annotation is bool else annotation


def with_rules(*rules: Rule, names: Mapping[str, str] | None = None) -> ConfigDict:
    """Configuration of a model of requests whose schema shows rules between its fields.

    Args:
        names: What fields of the rules are called in requests, where they have another name.
    """

    def add(schema: Schema, model: type[BaseModel]) -> None:
        order_properties(schema, model)
        schema["allOf"] = [rule.show(schema["properties"], names or {}) for rule in rules]

    return ConfigDict(json_schema_extra=add)


def order_properties(schema: Schema, model: type[BaseModel]) -> None:
    """Show the options last, as `wire_fields` does; pydantic puts what is inherited first."""
    schema["properties"] = {name: schema["properties"][name] for name in wire_fields(model)}
