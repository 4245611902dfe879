"""The wire models: their examples, responses of other versions of the service, and what importing them costs."""

import importlib
import inspect
import pkgutil
import subprocess
import sys
from typing import Any

import pytest

import tuneyard_wire
from tuneyard_wire.jobs import Progress, Queue, Result, SftStarted, TrainJob, TrainStarted
from tuneyard_wire.plan import Plan, PlanWarning
from tuneyard_wire.response import Response

MODULES = [
    importlib.import_module(f"tuneyard_wire.{module.name}") for module in pkgutil.iter_modules(tuneyard_wire.__path__)
]
MODELS = sorted(
    {
        model
        for module in MODULES
        for model in vars(module).values()
        if inspect.isclass(model) and issubclass(model, Response) and model is not Response
    },
    key=lambda model: model.__name__,
)
WITH_EXAMPLES = [model for model in MODELS if model.model_config.get("json_schema_extra")]


@pytest.mark.parametrize("model", WITH_EXAMPLES, ids=lambda model: model.__name__)
def test_an_example_is_one_of_its_model_and_whole(model: type[Response]) -> None:
    example = model.example()
    read = model.model_validate(example, strict=False)
    assert not find_extra(read)
    assert read.model_dump(mode="json") == example
    required = set(model.model_json_schema(mode="serialization")["required"])
    assert required <= set(example)


def find_extra(value: Any) -> list[str]:
    """Fields that no model names, at any depth."""
    if isinstance(value, Response):
        below = [name for field in type(value).model_fields for name in find_extra(getattr(value, field))]
        return [*(value.model_extra or {}), *below]
    return [name for item in value for name in find_extra(item)] if isinstance(value, list) else []


def test_most_responses_have_an_example() -> None:
    assert {"TrainJob", "SftJob", "Plan", "Delivery", "SavedConfig", "Result"} <= {
        one.__name__ for one in WITH_EXAMPLES
    }


@pytest.mark.parametrize("model", WITH_EXAMPLES, ids=lambda model: model.__name__)
def test_fields_of_a_newer_service_are_kept_at_any_depth(model: type[Response]) -> None:
    newer = add_fields(model.model_validate(model.example()))
    assert model.model_validate(newer).model_dump(mode="json") == newer


def add_fields(value: Any) -> Any:
    """The same as a newer service sends it: each object that is one of a model has a field more."""
    if isinstance(value, list):
        return [add_fields(item) for item in value]
    if not isinstance(value, Response):
        return value
    plain = value.model_dump(mode="json")
    names = {name: field.alias or name for name, field in type(value).model_fields.items()}
    shown = {shown: getattr(value, name) for name, shown in names.items() if shown in plain}
    nested = {name: add_fields(item) for name, item in shown.items() if isinstance(item, Response | list)}
    return plain | nested | {"a_newer_field": {"x": 1}}


def test_what_an_older_service_did_not_send_has_a_default() -> None:
    job = TrainJob.model_validate({"job_id": "1", "status": "queued", "config": {}})
    assert (job.name, job.metadata, job.progress, job.started_at, job.has_ended) == ("", {}, None, None, False)


def test_nothing_is_sent_of_what_there_is_not() -> None:
    assert SftStarted(job_id="1", status="pending").model_dump() == {"job_id": "1", "status": "pending"}
    assert "warnings" not in TrainStarted(job_id="1", status="queued", message="m").model_dump()
    assert PlanWarning(code="c", message="m").model_dump() == {"code": "c", "message": "m"}


def test_the_document_says_which_fields_are_always_there() -> None:
    for model, optional in ((TrainJob, set()), (Queue, set()), (TrainStarted, {"warnings"}), (Progress, set())):
        fields = set(model.model_fields)
        assert fields - set(model.model_json_schema(mode="serialization")["required"]) == optional
    assert Result.model_validate({}).adapter_path is None  # of a job that an older service has recorded
    assert Plan.example()["tokens"]["histogram"][0]["from"] == 0


def test_importing_them_needs_pydantic_alone() -> None:
    script = (
        "import sys, tuneyard_wire, pkgutil, importlib\n"
        "[importlib.import_module('tuneyard_wire.' + m.name) for m in pkgutil.iter_modules(tuneyard_wire.__path__)]\n"
        "found = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(found & {'httpx', 'sft', 'jobs', 'api', 'fastapi', 'torch', 'yaml', 'prefect', 'rich'}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
