"""Explains invalid values to the user who sent them: the field, the value and what it must be.

Pydantic's own messages show regular expressions, names of Python types and its jargon; none of them reaches a client.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_core import CoreSchema, core_schema

SHOWN_CHARACTERS = 80
MOST_PROBLEMS = 50  # in a message; finding the nearest name takes a millisecond each

# By pydantic's error type. The values in braces come from the error's context.
_WORDS = {
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "finite_number": "must be a finite number",
    "string_too_long": "must have at most {max_length} characters",
    "too_long": "must have at most {max_length} entries",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "none_required": "must be null",
    "string_pattern_mismatch": "must be of another form",  # without words of its own: declare the field by `Matching`
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    **dict.fromkeys(("string_type", "string_sub_type", "string_unicode"), "must be text"),
    **dict.fromkeys(("list_type", "tuple_type", "set_type", "iterable_type"), "must be a list"),
    **dict.fromkeys(("dict_type", "mapping_type", "model_type", "model_attributes_type"), "must be an object"),
}
_OTHERWISE = "is not valid here"

# Names for the same field: in the two interfaces, and in other programs that users come from.
SAME = [
    frozenset(words.split())
    for words in (
        "base_model model_name model model_id model_name_or_path pretrained_model_name_or_path",
        "dataset_name dataset_version dataset dataset_path training_file train_file",
        "template_name template chat_template prompt_template",
        "max_seq_length cutoff_len max_length max_seq_len sequence_len model_max_length",
        "num_epochs epochs n_epochs num_train_epochs",
        "batch_size per_device_train_batch_size micro_batch_size train_batch_size",
        "learning_rate lr",
        "scheduler_type lr_scheduler_type lr_scheduler",
        "optimizer_type optim optimizer",
        "lora_r lora_rank rank r",
        "lora_target_modules lora_target target_modules lora_modules",
        "validation_split val_size val_set_size eval_size test_size",
        "adapter_name lora_name suffix",
        "status state",
    )
]
# Names that are not fields of a configuration, and where they belong. The library by itself knows none; `jobs.spec`
# adds the options of a job.
PLACES: dict[str, str] = {}
_OWN_PREFIX = "Value error, "  # pydantic puts it before our messages
# Parts of an error's location that name a union's alternative, not a field or key of the input.
_ALTERNATIVE = re.compile(
    r"bool|int|float|str|none|literal\[.*|function-.*|(list|tuple|dict|set|nullable|union|constrained|lax-or-strict)\b.*"
)
_KEY = "[key]"


@dataclass(frozen=True)
class Matching:
    """Annotation of text that must match an expression, which only schemas show; messages have the words instead.

    An expression that begins with `^` must match the whole text. The words follow the field's name: `must be ...`.
    """

    pattern: str
    words: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "pattern": self.pattern}

    def check(self, text: str) -> str:
        """Return the text if it matches. Raises ValueError with the words."""
        match = re.fullmatch if self.pattern.startswith("^") else re.search
        if not match(self.pattern, text):
            raise ValueError(self.words)
        return text


def find_nearest(name: str, known: Iterable[str]) -> str | None:
    """Find the known name most likely meant: a synonym, a similar spelling, or a name that is part of the other."""
    names = list(known)
    same = next((words for words in SAME if name in words), frozenset())
    if found := next((known_name for known_name in names if known_name in same), None):
        return found
    if same or name in PLACES:  # a synonym; similar spellings mean something else
        return None
    if alike := difflib.get_close_matches(name, names, n=1, cutoff=0.6):
        return alike[0]
    words = set(name.lower().replace("-", "_").split("_"))
    within = [known_name for known_name in names if words.issuperset(known_name.split("_"))]
    return max(within, key=len, default=None)


def explain_validation_error(error: ValidationError, model: type[BaseModel]) -> str:
    """Explain every problem of a pydantic error, one per line; an unknown field gets the nearest known name."""
    fields = [field.alias or name for name, field in model.model_fields.items()]
    return explain_problems(error.errors(include_url=False), fields)


def explain_problems(problems: Sequence[Mapping[str, Any]], known_fields: Sequence[str]) -> str:
    """Explain pydantic's problems as lines `field: what it must be, got value`; one line for all alternatives."""
    by_place: dict[tuple[str | int, ...], list[Mapping[str, Any]]] = {}
    for problem in problems[:MOST_PROBLEMS]:
        by_place.setdefault(_place(problem["loc"]), []).append(problem)
    whole = by_place.pop((), [])
    lines = [_explain((), [problem], known_fields) for problem in whole]
    lines += [
        _explain(place, found, known_fields)
        for place, found in by_place.items()
        if not _is_explained_deeper(place, found, by_place)
    ]
    if len(problems) > MOST_PROBLEMS:
        lines.append(f"and {len(problems) - MOST_PROBLEMS} more problems")
    return "\n".join(lines)


def _place(loc: Sequence[str | int]) -> tuple[str | int, ...]:
    rest = (part for part in loc[1:] if not (isinstance(part, str) and _ALTERNATIVE.fullmatch(part)))
    return (*loc[:1], *rest)


def _is_explained_deeper(
    place: tuple[str | int, ...], problems: list[Mapping[str, Any]], places: Iterable[tuple[str | int, ...]]
) -> bool:
    """Whether another problem explains this one: a nested one of the right alternative, or of a list's only entry."""
    is_vague = any(len(problem["loc"]) > len(place) or problem["type"] == "too_short" for problem in problems)
    return is_vague and any(len(other) > len(place) and other[: len(place)] == place for other in places)


def _explain(place: tuple[str | int, ...], problems: list[Mapping[str, Any]], known_fields: Sequence[str]) -> str:
    kind, name = problems[0]["type"], ".".join(map(_name, place))
    if kind == "extra_forbidden":
        is_in_list = any(isinstance(part, int) for part in place)  # whose entries have other fields
        nearest = None if is_in_list else find_nearest(str(place[-1]), known_fields)
        hint = f"; did you mean {nearest}?" if nearest else ""
        if not nearest and not is_in_list and place[-1] in PLACES:
            hint = f"; it is not part of a configuration: {PLACES[str(place[-1])]}"
        return f"{name} is not a known field{hint}"
    if kind == "missing":
        return f"{name or 'body'} is required"
    phrases = [*dict.fromkeys(map(_phrase, problems))]
    if len(phrases) > 1 and all(phrase.startswith("must be ") for phrase in phrases):
        phrases = ["must be " + " or ".join(phrase.removeprefix("must be ") for phrase in phrases)]
    phrase = ", or ".join(phrases)
    if place and place[-1] == _KEY:
        *owner, key = place[:-1]
        return f"{'.'.join(map(_name, owner))}: the key {shorten(repr(key))} {phrase}"
    if not name and kind == "value_error":
        return phrase
    got = f", got {shorten(repr(problems[0]['input']))}" if "input" in problems[0] else ""  # else the phrase says it
    return f"{name}: {phrase}{got}" if name else f"the body {phrase}{got}"


def _name(part: str | int) -> str:
    """A field's name or an entry's number; an empty or long name is quoted and cut."""
    text = str(part)
    return text if text and len(text) <= SHOWN_CHARACTERS else shorten(repr(text))


def _phrase(problem: Mapping[str, Any]) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "value_error":
        message = str(problem["msg"]).removeprefix(_OWN_PREFIX)
        return f"{message[:1].lower()}{message[1:]}" if problem["loc"] else message
    if kind in ("string_too_short", "too_short"):
        count, what = context["min_length"], "entries" if kind == "too_short" else "characters"
        return "must not be empty" if count == 1 else f"must have at least {count} {what}"
    if kind == "too_long" and context["max_length"] == 0:
        return "must be empty"
    values = {name: _plain(value) for name, value in context.items()}
    has_length = kind in ("string_too_long", "too_long") and isinstance(problem["input"], Sized)
    too_long = f", it has {len(problem['input'])}" if has_length else ""
    try:
        return _WORDS.get(kind, _OTHERWISE).format(**values) + too_long
    except KeyError:
        return _OTHERWISE


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def shorten(text: str) -> str:
    """Cut a long text."""
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."
