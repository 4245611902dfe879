"""MLflow with its artifacts in S3, which its clients reach by themselves: a job trains only if it can write there."""

import json
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import boto3
import pytest
from mlflow import MlflowClient

from jobs.errors import AdapterNotFound, RegistryRefused, RegistryUnavailable
from jobs.mlflow_server import MlflowServer as Registry
from jobs.results.archive import Archive, checksum
from jobs.results.result_files import list_registered_files
from jobs.settings import Settings
from sft.config import SFTConfig
from sft.errors import StackError
from tasks.dataset import resolve
from tasks.dataset_version import DatasetVersion
from tasks.outage import keep_trying
from tasks.register import fetch_adapter, register_adapter
from tasks.tracking import CONFIG_FILE, MlflowTracker
from tests.conftest import free_port
from tests.mlflow_server import MlflowServer
from tests.s3_server import BUCKET, s3_server

CONFIG = SFTConfig(base_model="tiny", dataset_name="handbook", dataset_format="alpaca")
DATASET = DatasetVersion("handbook", "v1.0", "c0ffee", "0" * 32, Path("/data"), None, 48, "dvc", "/registry")


@pytest.fixture(scope="module")
def store():
    with pytest.MonkeyPatch.context() as patch, s3_server("MLFLOW_S3_ENDPOINT_URL") as server:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        yield server


@pytest.fixture(scope="module")
def settings(store, tmp_path_factory):
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"), f"s3://{BUCKET}/mlflow")
    server.start()
    server.wait()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)  # the settings have it
        yield Settings(home=tmp_path_factory.mktemp("home"), mlflow_tracking_uri=server.uri)
    server.kill()


def test_an_adapter_goes_there_and_comes_back(settings, store, tmp_path):
    folder, name = tmp_path / "adapter", f"stored-{uuid4()}"
    (folder / "deep").mkdir(parents=True)
    files = {"adapter_model.safetensors": bytes(range(256)) * 9000, "deep/README.md": b"text", "empty": b""}
    for path, content in files.items():
        (folder / path).write_bytes(content)
    tracker = MlflowTracker(settings, str(uuid4()), "a run", CONFIG)
    tracker.log_config()
    adapter = register_adapter(tracker, str(uuid4()), name, folder, DATASET, {})
    tracker.finish(succeeded=True)
    key = f"{tracker.run.info.artifact_uri}/{CONFIG_FILE}".removeprefix(f"s3://{BUCKET}/")
    assert json.loads(store.client.get_object(Bucket=BUCKET, Key=key)["Body"].read())["base_model"] == "tiny"

    fetched = fetch_adapter(settings, f"models:/{name}/{adapter.version}", tmp_path / "fetched")
    assert {path: (fetched / path).read_bytes() for path in files} == files
    members = list_registered_files(Registry.find(settings), name, str(adapter.version))
    assert {member.name: b"".join(member.read(None)) for member in members} == files
    archive = Archive(name, tuple(sorted(members, key=lambda member: member.name)))
    assert len(b"".join(archive.read())) == archive.size
    assert b"".join(archive.read(5000, 700_000)) == b"".join(archive.read())[5000:700_000]
    assert checksum(archive)


def test_a_version_that_names_files_of_others_is_not_read(settings, store):
    """MLflow takes any address of a version's files; the API would read them with its own credentials."""
    store.client.put_object(Bucket=BUCKET, Key="private/secret.txt", Body=b"secret")
    client, name = MlflowClient(settings.mlflow_tracking_uri), f"strange-{uuid4()}"
    run = client.create_run("0")
    client.create_registered_model(name)
    own = run.info.artifact_uri
    for source in (f"s3://{BUCKET}/private", f"{own}x", own.rpartition("/")[0]):
        version = client.create_model_version(name, source, run.info.run_id, await_creation_for=0)
        with pytest.raises(AdapterNotFound, match=r"is stored at s3://.*; fetch it from there"):
            list_registered_files(Registry.find(settings), name, str(version.version))


def test_a_job_without_the_package_does_not_begin(settings, monkeypatch):
    tracker = MlflowTracker(settings, str(uuid4()), "a run", CONFIG)
    fresh_clients(monkeypatch)
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(RegistryRefused, match=r"can't be used for .*boto3.*; pip install 'tuneyard\[s3\]' where jobs"):
        tracker.log_config()
    tracker.finish(succeeded=False)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_SHARED_CREDENTIALS_FILE": "/none"}, "credentials"),
        ({"AWS_DEFAULT_PROFILE": "nobody"}, "nobody"),
    ],
    ids=["no credentials", "no such profile"],
)
def test_a_job_that_may_not_write_there_does_not_begin(settings, monkeypatch, variables, words):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
        if not value:
            monkeypatch.delenv(name)
    fresh_clients(monkeypatch)
    tracker = MlflowTracker(settings, str(uuid4()), "a run", CONFIG)
    with pytest.raises(RegistryRefused, match=f"s3://.*{words}.*; check the credentials and rights"):
        tracker.log_config()
    tracker.finish(succeeded=False)


def test_a_bucket_that_is_gone_is_refused_before_training(settings, store, tmp_path, monkeypatch):
    tracker = MlflowTracker(settings, str(uuid4()), "a run", CONFIG)
    artifact_uri = tracker.run.info.artifact_uri.replace(BUCKET, "no-such-bucket")
    monkeypatch.setattr(
        "mlflow.tracking._tracking_service.client.TrackingServiceClient._get_artifact_repo",
        lambda self, run_id: open_repository(artifact_uri),
    )
    with pytest.raises(RegistryRefused, match=r"NoSuchBucket.*; check the credentials and rights"):
        tracker.log_config()
    tracker.finish(succeeded=False)


def test_a_store_that_is_away_is_waited_for(settings, monkeypatch):
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    fresh_clients(monkeypatch)
    tracker = MlflowTracker(settings, str(uuid4()), "a run", CONFIG)
    monkeypatch.setattr(keep_trying, "__defaults__", (0.5,))
    with pytest.raises(RegistryUnavailable, match=r"did not respond for .* while writing to the artifact store"):
        tracker.log_config()
    tracker.finish(succeeded=False)


def test_the_api_says_what_it_lacks(settings, store, tmp_path, monkeypatch):
    folder, name = tmp_path / "adapter", f"lacking-{uuid4()}"
    folder.mkdir()
    (folder / "weights").write_bytes(b"w")
    tracker = MlflowTracker(settings, str(uuid4()), "a run", CONFIG)
    adapter = register_adapter(tracker, str(uuid4()), name, folder, DATASET, {})
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(StackError, match=r"stored at s3://.*; pip install 'tuneyard\[s3\]' where the API runs"):
        list_registered_files(Registry.find(settings), name, str(adapter.version))


def fresh_clients(monkeypatch):
    """MLflow keeps the clients it has made."""
    from mlflow.store.artifact import s3_artifact_repo

    s3_artifact_repo._cached_get_s3_client.cache_clear()
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)


def open_repository(uri):
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(uri)


def test_a_dataset_registry_with_its_remote_there(store, tmp_path, monkeypatch):
    """As datasets/README.md shows it."""
    registry = tmp_path / "registry"
    registry.mkdir()
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
    rows = registry / "support" / "train.jsonl"

    def run(*command: str) -> None:
        subprocess.run(command, cwd=registry, check=True, capture_output=True)

    dvc = (sys.executable, "-m", "dvc")
    run("git", "init", "-b", "main")
    run(*dvc, "init")
    rows.parent.mkdir()
    rows.write_text('{"instruction": "a", "output": "b"}\n' * 3, encoding="utf-8")
    run(*dvc, "add", "support")
    run(*dvc, "remote", "add", "--default", "store", f"s3://{BUCKET}/datasets")
    run("git", "add", "--all")
    run("git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--message", "Support tickets")
    run("git", "tag", "v1.0")
    run(*dvc, "push", "--all-tags")
    found = resolve("support@v1.0", Settings(home=tmp_path / "home", dataset_registry=str(registry)))
    assert found.rows == 3
