"""An MLflow server that asks for credentials: they are found as MLflow finds them, and shown nowhere."""

import base64
import os
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest

from jobs.mlflow_server import MlflowServer
from jobs.results.result_files import list_registered_files
from jobs.settings import Settings
from jobs.stack.endpoints import Endpoints
from jobs.stack.parts import stack_environment
from jobs.stack.readiness import check_parts
from sft.config import SFTConfig
from sft.errors import StackError
from tasks.dataset_version import DatasetVersion
from tasks.register import fetch_adapter, list_adapters, register_adapter
from tasks.tracking import MlflowTracker
from tests.mlflow_server import Proxy

USER, PASSWORD = "ann", "p@ss:/ word"
ESCAPED = "p%40ss%3A%2F%20word"
BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
TOKEN = "t0ken-of-ann"
CONFIG = SFTConfig(base_model="tiny", dataset_name="handbook", dataset_format="alpaca")
DATASET = DatasetVersion("handbook", "v1.0", "c0ffee", "0" * 32, Path("/data"), None, 48, "dvc", "/registry")
VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    """No credentials, and none are left behind: a job puts them into its environment."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr("jobs.mlflow_server.CREDENTIALS_FILE", tmp_path / "credentials")
    monkeypatch.setattr("mlflow.utils.credentials._get_credentials_path", lambda: str(tmp_path / "credentials"))


def in_the_address(address, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address.replace("//", f"//{USER}:{ESCAPED}@"))


def in_variables(address, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)


def in_the_address_and_wrong_in_variables(address, monkeypatch, tmp_path):
    in_variables(address, monkeypatch, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "former")
    in_the_address(address, monkeypatch, tmp_path)


def in_mlflows_file(address, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    lines = ["[mlflow]", f"mlflow_tracking_username = {USER}", f"mlflow_tracking_password = {PASSWORD}"]
    (tmp_path / "credentials").write_text("\n".join(lines), encoding="utf-8")


def as_a_token(address, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)


WAYS = [in_the_address, in_variables, in_the_address_and_wrong_in_variables, in_mlflows_file, as_a_token]


@pytest.mark.parametrize("way", WAYS)
def test_a_job_registers_and_its_adapter_is_found_again(client, adapter_dir, tmp_path, monkeypatch, way):
    proxy = Proxy(client.tracking_uri, authorization=f"Bearer {TOKEN}" if way is as_a_token else BASIC)
    with closing(proxy):
        way(proxy.uri, monkeypatch, tmp_path)
        settings, name = Settings(home=tmp_path / "home"), f"secret-{uuid4()}"
        tracker = MlflowTracker(settings, str(uuid4()), "a run", CONFIG)
        adapter = register_adapter(tracker, str(uuid4()), name, adapter_dir, DATASET, {})
        tracker.finish(succeeded=True)
        assert name in list_adapters(settings)
        fetched = fetch_adapter(settings, f"models:/{name}/1", tmp_path / "fetched")
        assert (fetched / "adapter_model.safetensors").read_bytes() == bytes(1000)
        (member,) = list_registered_files(MlflowServer.find(settings), name, str(adapter.version))
        assert b"".join(member.read(None)) == bytes(1000)
        assert check_parts(settings)["mlflow"].ok
    assert tracker.url.startswith(f"{proxy.uri}/#/experiments/")
    for shown in (repr(settings), repr(tracker.url), repr(MlflowServer.find(settings)), repr(member)):
        assert not any(secret in shown for secret in (PASSWORD, ESCAPED, TOKEN))


def test_the_parts_of_a_stack_have_them_in_their_environment_and_no_file_has(monkeypatch, tmp_path):
    in_the_address("https://mlflow.example", monkeypatch, tmp_path)
    settings = Settings(home=tmp_path)
    environment = stack_environment(settings)
    assert environment["MLFLOW_TRACKING_URI"] == "https://mlflow.example"
    assert (environment["MLFLOW_TRACKING_USERNAME"], environment["MLFLOW_TRACKING_PASSWORD"]) == (USER, PASSWORD)
    Endpoints(True, {"mlflow_tracking_uri": str(settings.mlflow_tracking_uri)}, (), ()).write(tmp_path)
    assert PASSWORD not in (tmp_path / "endpoints.json").read_text(encoding="utf-8")


def test_credentials_that_are_refused_are_said_to_be(tmp_path):
    with closing(Proxy("http://127.0.0.1:1", authorization="another")) as proxy:
        settings = Settings(home=tmp_path, mlflow_tracking_uri=proxy.uri)
        assert check_parts(settings)["mlflow"].detail.startswith("refuses the credentials (401); set MLFLOW_TRACKING_")
        with pytest.raises(StackError, match=r"refuses the credentials \(401\); set MLFLOW_TRACKING_USERNAME and"):
            list_registered_files(MlflowServer.find(settings), "name", "1")


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://ann:secret@mlflow.example:5000/base/", "http://mlflow.example:5000/base"),
        ("https://ann@mlflow.example", "https://mlflow.example"),
        ("https://:secret@[::1]:5000", "https://[::1]:5000"),
        ("http://an%40n:se%2Fcret@mlflow.example", "http://mlflow.example"),
        ("postgresql://ann:secret@db.example/mlflow", "postgresql://db.example/mlflow"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("databricks", "databricks"),
        ("http://[", "http://["),
    ],
)
def test_an_address_is_shown_without_them(uri, shown, tmp_path):
    server = MlflowServer.find(Settings(home=tmp_path, mlflow_tracking_uri=uri))
    assert server.url == shown
    assert "secret" not in os.environ.get("MLFLOW_TRACKING_URI", "")
