"""What is wrong with a request is said in words of its own: no regular expression, no type, no phrase of a library."""

import json
import math
import re
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core._pydantic_core import list_all_errors

from api.errors import explain_request
from api.request_fields import wire_fields
from api.sft_request import BESIDE_CONFIG, ConfigBody, ConfigChange, ConfigFields, TrainBody
from api.training_request import TrainingRequest
from jobs.spec import JobSpec
from sft.config import SFTConfig
from sft.errors import InvalidConfig, TemplateNotFound
from sft.explanations import SAME, Matching, explain_validation_error, find_nearest

BAD = [
    None, True, 0, -1, 1.5, 2**70, 1e300, -math.inf, math.nan, "", " ", "x", "../x", "a b", "Yes", "1", "x" * 999,
    "\u2028", [], [None], [1], ["x", 2], [[]], {}, {"a": 1}, {"a b": "x"}, {"k" * 99: "v" * 999},
    {str(n): "" for n in range(20)},
]  # fmt: skip
# The parts of pydantic's messages that are the same whatever the values: between braces, and long enough to be its own.
PHRASES = {
    part.strip().lower()
    for error in list_all_errors()
    for template in (error["message_template_python"], error.get("message_template_json", ""))
    for part in re.split(r"\{[^}]*\}", template)
    if len(part.strip()) > 12
} - {"value error, ", "value error,"}
JARGON = re.compile(
    r"[\\^]|\[\S*-\S*\]|\)\?|pattern|regex|input should|dictionary|\b(dict|str|int|tuple|bool)\b|NoneType|"
    r"literal\[|function-|constrained|pydantic|instance of|is not valid here|another form",
    re.IGNORECASE,
)


def patterns_of(schema: Any) -> set[str]:
    """Every regular expression anywhere in a schema."""
    if isinstance(schema, dict):
        own = {schema["pattern"]} if isinstance(schema.get("pattern"), str) else set()
        own |= set(schema.get("patternProperties", {}))
        return own.union(*map(patterns_of, schema.values()), set())
    return set().union(*map(patterns_of, schema)) if isinstance(schema, list) else set()


PATTERNS = patterns_of([model.model_json_schema() for model in (TrainingRequest, ConfigFields, TrainBody)])


def check_words(message: str, field: str, given: Any) -> None:
    """The message names the field and holds nothing of a library. What was given is quoted, and may be anything."""
    assert field in message
    told = message.replace(repr(given), "")
    told = re.sub(r", got .*|the key '.*' ", "", told)
    assert not JARGON.search(told), message
    assert not [phrase for phrase in PHRASES if phrase in told.lower()], message
    assert not [pattern for pattern in PATTERNS if pattern in told], message


def refuse(model: type[BaseModel], body: dict[str, Any]) -> str | None:
    """What a client is told of a body; None when it is taken."""
    try:
        model.model_validate(body)
    except ValidationError as error:
        problems = [{**problem, "loc": ("body", *problem["loc"])} for problem in error.errors()]
        return explain_request(problems, "application/json", [*wire_fields(model)])
    return None


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (TrainingRequest, [*wire_fields(TrainingRequest)]),
        (ConfigFields, [*ConfigFields.model_fields]),
        (TrainBody, [*TrainBody.model_fields]),
        (ConfigBody, [*ConfigBody.model_fields]),
        (ConfigChange, [*ConfigChange.model_fields]),
    ],
)
def test_no_bad_value_of_any_field_is_answered_in_a_librarys_words(model, names):
    refused = set()
    for name in names:
        for value in BAD:
            rest = {"config": {}, "name": "n"} if model in (TrainBody, ConfigBody) else {}
            body = {key: item for key, item in rest.items() if key in model.model_fields} | {name: value}
            if message := refuse(model, body):
                check_words(message, name, value)
                refused.add(name)
    assert refused >= {name for name in names if name not in ("config_id", "tracking_backend")}


@pytest.mark.parametrize("name", SFTConfig.model_fields)
def test_nor_in_python(name):
    whole = {"base_model": "m", "dataset_name": "d", "dataset_format": "chat"}
    for value in BAD:
        try:
            SFTConfig.from_dict(whole | {name: value})
        except InvalidConfig as error:
            check_words(str(error), name, value)


@pytest.mark.parametrize("name", JobSpec.model_fields)
def test_nor_of_a_job(name):
    whole = {"config": {"base_model": "m", "dataset_name": "d", "dataset_format": "chat"}}
    for value in BAD:
        try:
            JobSpec.build(**(whole | {name: value}))
        except (InvalidConfig, TemplateNotFound) as error:
            check_words(str(error), name, value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"gradient_checkpointing": "yes"}, "gradient_checkpointing: must be true or false or 'auto', got 'yes'"),
        ({"lora_target_modules": ["q", 1]}, "lora_target_modules.1: must be text, got 1"),
        ({"lora_target_modules": 1}, "lora_target_modules: must be a list or text, got 1"),
        ({"lora_r": 0}, "lora_r: must be greater than 0, got 0"),
        ({"seed": 2**32}, "seed: must be less than 4294967296, got 4294967296"),
        ({"metadata": {"a b": "x"}}, "metadata: the key 'a b' must be 1 to 64 letters, digits, '.', '_' and '-'"),
        ({"webhook_events": []}, "webhook_events: must not be empty, got []"),
        ({"lora_name": "../x"}, None),
        ({"epochs": 1}, "epochs is not a known field; did you mean num_epochs?"),
        ({"base_model": "x"}, "base_model is not a known field; did you mean model_name?"),
        ({"micro_batch_size": 1}, "micro_batch_size is not a known field; did you mean batch_size?"),
        ({"zzz": 1}, "zzz is not a known field"),
    ],
)  # fmt: skip
def test_what_is_said(value, message):
    named = "may contain letters, digits, '.', '_' and '-', and must start with a letter or digit"
    assert refuse(TrainingRequest, value) == (message or f"lora_name: {named}, got '../x'")


def test_a_flat_body_is_told_of_config_and_one_with_config_that_it_is_flat():
    flat = refuse(TrainBody, {"base_model": "m", "lora_rank": 4, "webhook_url": "http://example.com"})
    assert flat == ('base_model, lora_rank: put these fields into config: {"config": {"base_model": "m", "lora_r": 4}}')
    nested = refuse(TrainingRequest, {"config": {"base_model": "m", "dataset_name": "d"}})
    assert nested.startswith("config: the Training API takes the fields at the top level, without config; ")
    assert "base_model is model_name here; dataset_name is dataset_version here." in nested
    assert refuse(ConfigBody, {"name": "x", "lora_r": 4}).startswith("lora_r: put these fields into")
    for name in BESIDE_CONFIG:
        with pytest.raises(InvalidConfig, match=f"{name}: must be next to config, not inside it"):
            TrainBody(config={"base_model": "m", name: "x"}).to_spec(None)


@pytest.mark.parametrize("config", ["gpt2", ["gpt2"], 1, True])
@pytest.mark.parametrize("model", [TrainBody, ConfigBody, ConfigChange])
def test_a_configuration_of_the_wrong_type(model, config):
    name = {} if model is TrainBody else {"name": "n"}
    assert refuse(model, name | {"config": config}) == f"config: must be an object, got {config!r}"


def test_many_problems_are_not_looked_into_one_by_one():
    message = refuse(TrainingRequest, {f"field{number}": 1 for number in range(5000)})
    assert message.endswith("and 4950 more problems")


def test_nobodys_words_stand_for_two_fields():
    words = [word for group in SAME for word in group]
    assert len(words) == len(set(words))
    for fields in (wire_fields(TrainingRequest), SFTConfig.model_fields):
        assert all(len(group & set(fields)) <= 1 for group in SAME)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("learning_rat", "learning_rate"), ("lr", "learning_rate"), ("train_seed_value", "seed"), ("zzz", None)]
    + [(name, None) for name in ("adapter_name", "lora_name", "suffix", "status", "webhook_url", "tracking_backend")],
)
def test_the_nearest_name(name, nearest):
    assert find_nearest(name, [*SFTConfig.model_fields]) == nearest


@pytest.mark.parametrize("name", ["adapter_name", "webhook_url", "metadata", "tracking_backend", "webhook_events"])
def test_what_belongs_beside_a_configuration_is_said_to(name):
    with pytest.raises(
        ValueError, match=f"{name} is not a known field; it is not part of a configuration: send it besi"
    ):
        SFTConfig.from_dict({"base_model": "m", "dataset_name": "d", "dataset_format": "chat", name: "x"})


def test_an_expression_is_matched_from_end_to_end_and_shown_in_schemas_only():
    kind = TypeAdapter(dict[str, Any])
    assert kind.validate_python({}) == {}
    anchored = Matching("^[a-z]+$", "must be small letters")
    assert anchored.check("abc") == "abc"
    for text in ("abc\n", "ABC", ""):
        with pytest.raises(ValueError, match=r"^must be small letters$"):
            anchored.check(text)
    assert json.dumps(sorted(PATTERNS))
    assert len(PATTERNS) >= 4


def test_a_problem_of_a_type_that_nobody_thought_of_is_still_in_words():
    class Other(BaseModel):
        when: complex

    with pytest.raises(ValidationError) as refusal:
        Other.model_validate({"when": []})
    assert explain_validation_error(refusal.value, Other) == "when: is not valid here, got []"
