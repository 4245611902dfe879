"""Rules between fields, written once for validation and for the JSON Schema."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel

# Requirements on a field besides an exact value: left out (or null), given, or a number above 1.
NULL, GIVEN, SEVERAL = object(), object(), object()
Fields = dict[str, Any]
Schema = dict[str, Any]


@dataclass(frozen=True)
class Rule:
    """A rule that holds if all of `either` holds, or all of `otherwise`.

    Attributes:
        either: Field names, each with an exact value, `NULL`, `GIVEN` or `SEVERAL`.
        otherwise: The same, for the other alternative.
        refusals: For fields of `otherwise`: the sentence for a value that breaks the rule.
    """

    either: Fields
    otherwise: Fields
    refusals: dict[str, str]

    def check(self, values: BaseModel) -> None:
        """Raise ValueError with the sentence for the first field that breaks this rule."""
        if _find_breaks(self.either, values):
            for name in _find_breaks(self.otherwise, values):
                raise ValueError(self.refusals[name])

    def show(self, properties: Schema, names: Mapping[str, str] = MappingProxyType({})) -> Schema:
        """The rule as JSON Schema, in a form that data generators support.

        Fields that exclude each other become a `not`; otherwise each alternative is a complete schema.

        Args:
            properties: The properties of the schema that the rule is for.
            names: What fields are called there, where they have another name.
        """
        either, otherwise = (
            {names.get(name, name): wanted for name, wanted in fields.items()}
            for fields in (self.either, self.otherwise)
        )
        if len(either) == len(otherwise) == 1 and not {GIVEN, SEVERAL} & {*otherwise.values()}:
            broken = either | otherwise
            shown = {name: {"not": _show_value(properties, name, wanted)} for name, wanted in broken.items()}
            return {"not": {"properties": shown, "required": [*broken]}}
        return {"anyOf": [_show_fields(properties, fields) for fields in (either, otherwise)]}


def _find_breaks(fields: Fields, values: BaseModel) -> list[str]:
    return [name for name, wanted in fields.items() if not _is(getattr(values, name), wanted)]


def _is(value: Any, wanted: Any) -> bool:
    if wanted is NULL or wanted is GIVEN:
        return (value is None) == (wanted is NULL)
    return bool(value > 1 if wanted is SEVERAL else value == wanted)


def _show_fields(properties: Schema, fields: Fields) -> Schema:
    shown: Schema = {"properties": {name: _show_value(properties, name, wanted) for name, wanted in fields.items()}}
    if given := [name for name, wanted in fields.items() if wanted in (GIVEN, SEVERAL)]:
        shown["required"] = given
    return shown


def _show_value(properties: Schema, name: str, wanted: Any) -> Schema:
    if wanted is SEVERAL:
        limits = {name: limit for name, limit in properties[name].items() if name in ("type", "maximum")}
        return {**limits, "minimum": 2}
    if wanted is not GIVEN:
        return {"type": "null"} if wanted is NULL else {"const": wanted}
    kinds = [kind for kind in properties[name].get("anyOf", [properties[name]]) if kind != {"type": "null"}]
    return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}


_OF_LORA: Fields = {
    "use_qlora": False,
    "use_dora": False,
    "use_rslora": False,
    "loraplus_lr_ratio": NULL,
    "adapter_path": NULL,
}
# The rules of `SFTConfig`.
CONFIG_RULES = (
    Rule(
        {"use_lora": True},
        _OF_LORA,
        {name: f"{name} needs use_lora; set use_lora to true" for name in _OF_LORA},
    ),
    Rule(
        {"max_batch_tokens": NULL},
        {"packing": False},
        {"packing": "max_batch_tokens does not go with packing, which fills max_seq_length; unset one of them"},
    ),
    Rule(
        {"train_on_prompt": False},
        {"mask_history": False},
        {"mask_history": "mask_history learns the last answer alone, train_on_prompt all before it too; set one"},
    ),
    Rule(
        {"validation_dataset": NULL},
        {"validation_split": 0},
        {
            "validation_split": "validation_split holds rows out of the training data, validation_dataset replaces "
            "them; leave one out"
        },
    ),
    Rule(
        {"early_stopping_patience": NULL},
        {"eval_steps": GIVEN},
        {"eval_steps": "early_stopping_patience needs eval_steps; say after how many steps to evaluate"},
    ),
    Rule(
        {"shard_model": False},
        {"num_devices": SEVERAL, "use_lora": True, "use_qlora": False, "use_dora": False},
        {
            "num_devices": "shard_model splits the model over several devices, and num_devices is 1; set num_devices "
            "to 2 or more, or shard_model to false",
            "use_lora": "shard_model splits frozen weights, and use_lora is false; set use_lora to true, or "
            "shard_model to false",
            "use_qlora": "shard_model does not split the 4-bit weights of use_qlora; set one of them to false",
            "use_dora": "shard_model splits the weights whose norms use_dora needs; set one of them to false",
        },
    ),
)
