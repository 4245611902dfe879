"""OpenAI's interface: the list of models, and errors in the shape that its clients read."""

import json
from collections.abc import Iterator
from uuid import uuid4

import httpx
import openai
import pytest
from fastapi.testclient import TestClient

from api.main import create_app
from jobs.settings import Settings
from tests.live_service import serving_api

BASE = "org/tiny"


@pytest.fixture(scope="module")
def settings(stack: Settings) -> Settings:
    """The stack's, with a base model in its model root."""
    folder = stack.model_root / BASE
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    return stack


@pytest.fixture(scope="module")
def client(settings: Settings) -> Iterator[openai.OpenAI]:
    """OpenAI's own client."""
    with serving_api(settings) as url, openai.OpenAI(api_key="x", base_url=f"{url}/v1", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def adapter(settings: Settings) -> str:
    """An adapter with two versions in MLflow's registry."""
    name = f"openai-{uuid4().hex[:8]}"
    with httpx.Client(base_url=f"{settings.mlflow_tracking_uri}/api/2.0/mlflow/", timeout=60) as mlflow:
        mlflow.post("registered-models/create", json={"name": name}).raise_for_status()
        run = mlflow.post("runs/create", json={"experiment_id": "0"}).raise_for_status().json()["run"]["info"]
        place = {"run_id": run["run_id"], "source": f"{run['artifact_uri']}/adapter"}
        for _ in range(2):
            version = {"name": name, **place, "tags": [{"key": "base_model", "value": BASE}]}
            mlflow.post("model-versions/create", json=version).raise_for_status()
    return name


@pytest.mark.stack
def test_bases_and_every_version_of_an_adapter_are_models(client, adapter):
    listed = {model.id: model for model in client.models.list()}
    assert {BASE, f"{adapter}@1", f"{adapter}@2"} <= set(listed)
    assert (listed[f"{adapter}@1"].model_extra or {})["parent"] == BASE
    assert [*listed].index(f"{adapter}@2") < [*listed].index(f"{adapter}@1")
    assert listed[BASE].created > 0


@pytest.mark.stack
@pytest.mark.parametrize("form", ["{}", "{}@latest", "{}@2", "{}@v2", f"ft:{BASE}:tuneyard:{{}}:2"])
def test_a_model_has_several_names(client, adapter, form):
    assert client.models.retrieve(form.format(adapter)).id == f"{adapter}@2"
    assert client.models.retrieve(BASE).id == BASE


@pytest.mark.stack
@pytest.mark.parametrize(
    "form", ["{}@3", "{}-x", "ft:another:tuneyard:{}:2", "../{}", "ft:x", f"{'x' * 300}{{}}", "{}@2@2", "é", "%00"]
)
def test_an_unknown_model_is_not_found(client, adapter, form):
    with pytest.raises((openai.NotFoundError, openai.BadRequestError)) as caught:
        client.models.retrieve(form.format(adapter))
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id


def test_errors_below_v1_have_openais_shape_and_others_their_own():
    client = TestClient(create_app(Settings(require_api_key=True)), base_url="http://localhost")
    answer = client.get("/v1/models", headers={"X-Request-ID": "abc"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (401, "abc")
    assert set(answer.json()) == {"error"}
    assert answer.json()["error"] | {"message": ""} == {
        "message": "", "type": "invalid_request_error", "param": None, "code": "unauthorized",
    }  # fmt: skip
    assert set(client.get("/v1x").json()) == {"detail", "code", "request_id"}
    assert set(client.get("/v1x", headers={"X-Request-ID": "a"}).json()) == {"detail", "code", "request_id"}


@pytest.mark.stack
def test_an_unknown_path_or_parameter_below_v1_is_an_error_of_openais(settings):
    client = TestClient(create_app(settings), base_url="http://localhost")
    for path, status in (("/v1/graders", 404), ("/v1/models?limti=3", 400)):
        answer = client.get(path)
        assert (answer.status_code, answer.json()["error"]["type"]) == (status, "invalid_request_error"), path
    assert "limti" in answer.json()["error"]["message"]
    assert client.delete("/v1/models").status_code == 405
    assert json.loads(client.post("/v1/models", content=b"{").content)["error"]["message"]
