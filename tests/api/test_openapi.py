"""The interactive documentation: complete, true, and served without the internet."""

import json
import re

import pytest
from fastapi.testclient import TestClient

from api.docs import CREATED
from api.examples import EXAMPLES
from api.job_configs import TrainConfig
from api.main import create_app
from api.sft_request import TrainBody
from api.training_request import TrainingRequest
from jobs.service.job_service import JobService
from sft.config import SFTConfig
from tuneyard_wire.jobs import SftJob, TrainJob

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def app(stack):
    return create_app(stack)


@pytest.fixture(scope="module")
def document(app):
    return app.openapi()


def operations(document):
    return {
        (method.upper(), path): operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
    }


def test_examples_and_routes_match(document):
    assert set(EXAMPLES) == set(operations(document))


def test_every_operation_has_a_summary_and_errors_in_the_shape_of_its_interface(document):
    for (method, path), operation in operations(document).items():
        name = "OpenAIError" if path.startswith("/v1/") else "Error"
        shape = {"$ref": f"#/components/schemas/{name}"}
        assert operation["summary"], (method, path)
        errors = {status for status in operation["responses"] if status >= "400"}
        assert errors, (method, path)
        for status in errors - {"503"} if path == "/ready" else errors:
            assert operation["responses"][status]["content"]["application/json"]["schema"] == shape, (method, path)
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_the_documented_routes_have_examples_of_request_and_answer(document):
    for (method, path), operation in operations(document).items():
        if EXAMPLES[method, path].response is None:
            assert path == "/" or path.endswith(
                ("/metrics", "/events", "/logs", "/adapter", "/configs/{config_id}", "/versions", "/content")
            )
            continue
        shown = operation["responses"]["200"]["content"]["application/json"]
        assert {"example", "examples"} & set(shown), (method, path)
        if json_body := operation.get("requestBody", {}).get("content", {}).get("application/json"):
            assert json_body["examples"], (method, path)


def test_the_examples_of_requests_are_valid():
    for body in EXAMPLES["POST", "/train"].requests.values():
        TrainingRequest.model_validate(body)
    for body in EXAMPLES["POST", "/api/sft/train"].requests.values():
        TrainBody.model_validate(body)
    SFTConfig.from_dict(EXAMPLES["POST", "/api/sft/train"].requests["alpaca"]["config"])


def test_keys_are_described_where_they_may_be_needed(document):
    assert set(document["components"]["securitySchemes"]) == {"bearer", "header"}
    assert operations(document)["POST", "/train"]["security"] == [{}, {"bearer": []}, {"header": []}]
    assert "security" not in operations(document)["GET", "/health"]


def test_the_page_needs_nothing_from_elsewhere(app):
    client = TestClient(app)
    page = client.get("/docs").text
    assets = re.findall(r'(?:src|href)="([^"]+)"', page)

    assert re.findall(r"https?://", page) == []
    assert len(assets) == 3
    assert [client.get(asset).status_code for asset in assets] == [200, 200, 200]
    assert client.get("/openapi.json").json()["openapi"].startswith("3.1")
    assert client.get("/redoc").status_code != 200


def test_a_parameter_is_never_null(document):
    for key, operation in operations(document).items():
        for parameter in operation.get("parameters", []):
            assert {"type": "null"} not in parameter["schema"].get("anyOf", []), (key, parameter["name"])


def test_what_post_makes_is_linked_to_every_operation_on_it(document):
    by_id = {operation["operationId"]: path for (_, path), operation in operations(document).items()}
    for path, name in CREATED.items():
        links = operations(document)["POST", path]["responses"]["200"]["links"].values()
        assert {by_id[link["operationId"]] for link in links} == {there for there in by_id.values() if name in there}
        assert {link["parameters"][name] for link in links} == {f"$response.body#/{name}"}


def test_every_answer_has_a_shape(document):
    for (method, path), operation in operations(document).items():
        if path == "/metrics":
            continue  # Prometheus' own format
        for content_type, content in operation["responses"]["200"].get("content", {}).items():
            schema = content.get("schema") or content["itemSchema"]
            shape = schema.get("items", schema)
            assert shape.get("$ref") or shape["type"] == "string" or shape["properties"], (method, path, content_type)


def test_a_jobs_answers_are_as_documented_and_its_configuration_is_whole(app, stack):
    client = TestClient(app)
    service = JobService(stack)
    spec = TrainingRequest(lora_name="support", lora_version=3, metadata={"team": "a"}).to_spec("handbook")
    job = service.create(spec)

    train = client.get(f"/train/{job.id}").json()
    sft = client.get(f"/api/sft/jobs/{job.id}").json()
    service.cancel(job.id)
    service.close()

    for shape, answer in ((TrainJob, train), (SftJob, sft)):
        assert set(answer) == set(shape.model_fields)
        assert shape.model_validate_json(json.dumps(answer), strict=True).model_dump(mode="json") == answer
    assert set(train["config"]) == set(TrainConfig.model_fields)
    TrainConfig.model_validate(train["config"], strict=True)
    assert SFTConfig.from_dict(sft["config"]).to_dict() == sft["config"]
