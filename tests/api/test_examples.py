"""Each example of the OpenAPI document is what a client sends, or what it gets: whole, and nothing made up."""

from typing import Any

import pytest
from jsonschema import Draft202012Validator, FormatChecker

from api.docs import DESCRIPTIONS
from api.examples import EXAMPLES, SFT_JOB, TRAIN_JOB
from api.job_configs import TrainConfig
from api.main import create_app
from jobs.settings import Settings
from sft.config import SFTConfig

DOCUMENT = create_app(Settings()).openapi()
OPERATIONS = {
    (method.upper(), path): operation for path, item in DOCUMENT["paths"].items() for method, operation in item.items()
}


def validate(value: Any, schema: dict[str, Any]) -> None:
    """By the schema, its references into the document, and the formats of ids and times."""
    whole = {**schema, "components": DOCUMENT["components"]}
    problems = [*Draft202012Validator(whole, format_checker=FormatChecker()).iter_errors(value)]
    assert [f"{problem.json_path}: {problem.message[:300]}" for problem in problems] == []


def find_unknown_keys(value: Any, schema: dict[str, Any]) -> list[str]:
    """Keys of an example that its schema does not name, at any depth, where that is a list of names."""
    if "$ref" in schema:
        return find_unknown_keys(value, DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    if "anyOf" in schema:
        fitting = [find_unknown_keys(value, kind) for kind in schema["anyOf"] if kind != {"type": "null"}]
        return [] if value is None or not fitting else min(fitting, key=len)
    if isinstance(value, list):
        return [key for item in value for key in find_unknown_keys(item, schema.get("items", {}))]
    if not isinstance(value, dict) or "properties" not in schema:
        return []
    own = [key for key in value if key not in schema["properties"] and schema["properties"]]
    return own + [
        f"{key}.{below}"
        for key, item in value.items()
        for below in find_unknown_keys(item, schema["properties"].get(key, {}))
    ]


@pytest.mark.parametrize(("method", "path"), EXAMPLES)
def test_an_example_of_an_answer_is_one(method, path):
    example, operation = EXAMPLES[method, path], OPERATIONS[method, path]
    for answer in [example.response, *example.other_responses.values()]:
        if answer is not None:
            schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
            validate(answer, schema)
            assert find_unknown_keys(answer, schema) in ([], ["warnings.rows"])  # of which a plan may have more
    for status, response in operation["responses"].items():
        if int(status) in DESCRIPTIONS and status != "503":
            validate(
                response["content"]["application/json"]["example"], response["content"]["application/json"]["schema"]
            )


@pytest.mark.parametrize(("method", "path"), [key for key, example in EXAMPLES.items() if example.requests])
def test_an_example_of_a_request_is_one(method, path):
    schema = OPERATIONS[method, path]["requestBody"]["content"]["application/json"]["schema"]
    for body in EXAMPLES[method, path].requests.values():
        validate(body, schema)


def test_examples_are_whole():
    assert set(TRAIN_JOB["config"]) == set(TrainConfig.model_fields)
    TrainConfig.model_validate(TRAIN_JOB["config"], strict=True)
    assert SFTConfig.from_dict(SFT_JOB["config"]).to_dict() == SFT_JOB["config"]


def test_the_warnings_of_a_submission_are_documented():
    for path in ("/train", "/api/sft/train"):
        operation = OPERATIONS["POST", path]
        (strict,) = [parameter for parameter in operation["parameters"] if parameter["name"] == "strict"]
        assert (strict["in"], strict["required"], strict["schema"]["default"]) == ("query", False, False)
        assert {"404", "400"} <= set(operation["responses"])
        shown = operation["responses"]["200"]["content"]["application/json"]["schema"]
        if "$ref" in shown:
            shown = DOCUMENT["components"]["schemas"][shown["$ref"].rpartition("/")[2]]
        assert "warnings" in shown["properties"]
        assert "warnings" not in shown["required"]
