"""Texts, lists, nesting and URLs that are longer than anybody needs are refused by name, before anything is spent."""

import asyncio
import json
from contextlib import suppress
from types import SimpleNamespace

import pytest
from fastapi.exceptions import RequestValidationError
from fastapi.testclient import TestClient
from pydantic import ValidationError

from api.errors import explain_request
from api.main import create_app
from api.sft_request import ConfigBody, TrainBody
from api.training_request import TrainingRequest
from api.values import MAX_DEPTH, MAX_VALUES, check_values
from jobs.clients.configs import _check
from sft.config import JOB_BYTES, LIST_ENTRIES, NAME_CHARACTERS, PATH_CHARACTERS, SFTConfig
from sft.errors import InvalidConfig
from tests.conftest import stack_settings

LONG = "x" * 900_000
PATHS = ("model_name", "dataset_version", "adapter_path", "output_dir", "checkpoint_dir")
NAMES = (
    *("lora_version", "run_name", "wandb_project", "wandb_entity", "wandb_run_name", "optimizer_type", "device_map"),
    *("dataset_split", "dataset_text_field", "template"),
)
LONG_FIELDS = {
    **dict.fromkeys(PATHS, (LONG, f"must have at most {PATH_CHARACTERS} characters, it has 900000")),
    **dict.fromkeys(NAMES, (LONG, f"must have at most {NAME_CHARACTERS} characters, it has 900000")),
    "webhook_url": (f"https://example.org/{LONG}", f"must have at most {PATH_CHARACTERS} characters, it has 900020"),
    "lora_target_modules": (["a"] * 180_000, f"lora_target_modules: must have at most {LIST_ENTRIES} entries"),
    "webhook_events": (["started"] * 90_000, "webhook_events: must have at most 16 entries, it has 90000"),
    "metadata": ({f"key{n}": "x" for n in range(40_000)}, "metadata: must have at most 16 entries, it has 40000"),
    "lora_name": (LONG, "lora_name: must have at most 200 characters, it has 900000"),
}


def problem_of(model, values):
    with pytest.raises((ValidationError, InvalidConfig)) as raised:
        model.model_validate(values)
    problems = [{**found, "loc": ("body", *found["loc"])} for found in raised.value.errors(include_url=False)]
    return explain_request(problems, "application/json", [])


@pytest.mark.parametrize("field", LONG_FIELDS)
def test_a_long_field_is_refused_with_its_name_length_and_limit(field):
    value, told = LONG_FIELDS[field]
    # beside lora_version, which needs a name
    problem = problem_of(TrainingRequest, {"lora_name": "a", "webhook_url": "https://example.org/", field: value})
    assert told in problem
    assert problem.startswith(f"{field}: ")
    assert len(problem) < 1000


def test_a_list_written_as_text_counts_as_a_list():
    problem = problem_of(TrainingRequest, {"lora_target_modules": "a," * 180_000})
    assert f"must have at most {LIST_ENTRIES} entries, it has 180000" in problem


def test_lists_that_are_short_enough_one_by_one_are_too_long_together():
    names = [f"{number:04}" + "m" * 200 for number in range(LIST_ENTRIES)]
    problem = problem_of(TrainingRequest, {"lora_target_modules": names})
    assert f"a job may have at most {JOB_BYTES} bytes as JSON" in problem


@pytest.mark.parametrize(
    "values",
    [
        {"base_model": LONG, "dataset_name": "d", "dataset_format": "auto"},
        {"base_model": "m", "dataset_name": LONG, "dataset_format": "auto"},
        {"base_model": "m", "dataset_name": "d", "dataset_format": "auto", "lora_target_modules": ["a"] * 180_000},
    ],
)
def test_the_sft_api_and_python_are_bound_too(values):
    with pytest.raises(InvalidConfig, match="must have at most"):
        TrainBody(config=values).to_spec(None)
    with pytest.raises(InvalidConfig, match="must have at most"):
        SFTConfig.from_dict(values)


def test_saved_configurations_have_a_size():
    assert "name: must have at most" in problem_of(ConfigBody, {"name": LONG, "config": {}})
    with pytest.raises(InvalidConfig, match=f"config: must have at most {JOB_BYTES} bytes as JSON"):
        _check("a", {"base_model": LONG}, {})
    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(InvalidConfig, match="config: must be plain JSON values"):
        _check("a", {"base_model": nested}, {})


def test_what_people_use_is_accepted():
    names = [f"model.layers.{layer}.mlp.experts.{expert}" for layer in range(48) for expert in range(80)]
    assert len(TrainingRequest(lora_target_modules=names).lora_target_modules) == 3840
    TrainingRequest(webhook_url="https://example.org/" + "x" * 4000, model_name="deep/" * 800)


class FakeRequest:
    """As much of a request as `check_values` looks at."""

    def __init__(self, body=b"", path="/train", query=b"", takes_body=True):
        route = SimpleNamespace(body_field=object() if takes_body else None)
        self.scope = {"path": path, "query_string": query, "route": route}
        self.path_params, self._body = {}, body
        self.query_params = self

    def multi_items(self):
        return []

    async def body(self):
        if self.scope["route"].body_field is None:
            raise AssertionError("a body that nobody asked for was read")
        return self._body


MANY = {
    "zeros": b'{"a": [' + b"0," * 499_999 + b"0]}",
    "lists": b'{"a": [' + b"[]," * 299_999 + b"[]]}",
    "infinite": b'{"a": [' + b"1e999," * 149_999 + b"0]}",
    "keys": json.dumps(dict.fromkeys(map(str, range(50_000)))).encode(),
    "spread": b'{"a": [' + (b"[" + b"0," * 99 + b"0],") * 999 + b"0]}",
}


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (FakeRequest(b'{"a": ' + b"[" * 90 + b"]" * 90 + b"}"), f"a: must not be nested more than {MAX_DEPTH} deep"),
        (
            FakeRequest(b'{"a": ' + b'{"b": ' * 90 + b"1" + b"}" * 91),
            f"a: must not be nested more than {MAX_DEPTH} deep",
        ),
        (FakeRequest(MANY["zeros"]), f"a: must have at most {LIST_ENTRIES} entries, it has 500000"),
        (FakeRequest(MANY["lists"]), f"a: must have at most {LIST_ENTRIES} entries, it has 300000"),
        (FakeRequest(MANY["infinite"]), f"a: must have at most {LIST_ENTRIES} entries, it has 150000"),
        (FakeRequest(MANY["keys"]), f"must have at most {LIST_ENTRIES} entries, it has 50000"),
        (FakeRequest(MANY["spread"]), f"a: must hold at most {MAX_VALUES} values in total"),
        (FakeRequest(query=b"model=" + b"x" * 900_000), "the URL must have at most 32768 characters, it has 900012"),
        (FakeRequest(path="/train/" + "x" * 900_000), "the URL must have at most 32768 characters, it has 900007"),
    ],
    ids=["lists", "objects", *MANY, "query", "path"],
)
def test_nesting_and_the_url_have_a_limit(request_, told):
    with pytest.raises(RequestValidationError) as raised:
        asyncio.run(check_values(request_))
    assert told in explain_request(raised.value.errors(), "application/json", [])


def test_others_are_served_while_a_body_is_looked_at():
    """As long as it takes: a megabyte of empty lists had kept the event loop, and so everybody, for a second."""

    async def count_turns(request):
        turns = 0

        async def take_turns():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        others = asyncio.create_task(take_turns())
        with suppress(RequestValidationError):
            await check_values(request)
        others.cancel()
        return turns

    body = json.dumps({"a": [{f"{number}": []} for number in range(4_000)], "b": "x" * 800_000}).encode()
    assert asyncio.run(count_turns(FakeRequest(body))) > 10


def test_a_body_that_a_route_does_not_take_is_not_looked_at():
    asyncio.run(check_values(FakeRequest(MANY["zeros"], takes_body=False)))


def test_a_url_with_thousands_of_unknown_parameters_is_told_some_of_them(tmp_path):
    client = TestClient(create_app(stack_settings(tmp_path / "home")))
    answer = client.get("/health?" + "&".join(f"limi{number}" for number in range(3000)))

    assert answer.status_code == 422
    assert 50 <= len(answer.json()["detail"].splitlines()) <= 52
