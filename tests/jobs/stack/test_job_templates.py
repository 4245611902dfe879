"""What a job is started as in a container or a pod: by the workers' own models and Kubernetes' schemas."""

import json
from collections.abc import Iterator

import docker
import kubernetes_validate
import pytest
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_KEY,
    PREFECT_API_URL,
    PREFECT_CLIENT_CUSTOM_HEADERS,
    PREFECT_SERVER_API_AUTH_STRING,
    PREFECT_SERVER_DATABASE_CONNECTION_URL,
    temporary_settings,
)
from prefect.workers.base import BaseJobConfiguration
from prefect_docker.worker import DockerWorker, DockerWorkerJobConfiguration
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

from jobs.stack.job_templates import MARK, OPTIONAL_SECRETS, REMOVED, REQUIRED_SECRETS, digest, is_ours, make_template
from tests.jobs.stack.prepared_jobs import prepare

URL = "https://prefect.example/api"
SECRET = "a-secret-of-the-worker"
SECRET_SETTINGS = (
    *(PREFECT_API_AUTH_STRING, PREFECT_API_KEY, PREFECT_SERVER_API_AUTH_STRING),
    PREFECT_SERVER_DATABASE_CONNECTION_URL,
)
VERSIONS = ("1.29", "1.33", kubernetes_validate.latest_version())


@pytest.fixture(autouse=True)
def settings_of_a_worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """With credentials that it must keep to itself, and would not by itself."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    updates = {PREFECT_API_URL: URL, PREFECT_CLIENT_CUSTOM_HEADERS: {"X-Token": SECRET}}
    updates |= {
        setting: f"sqlite+aiosqlite:///{SECRET}" if "CONNECTION" in setting.name else f"user:{SECRET}"
        for setting in SECRET_SETTINGS
    }
    with temporary_settings(updates):
        copied = BaseJobConfiguration._base_environment()
        copied_secrets = {name for name, value in copied.items() if SECRET in value}
        assert set(REMOVED) - copied_secrets == {"PREFECT_SERVER_DATABASE_PASSWORD"}, "which is in the URL"
        assert copied_secrets <= set(REMOVED)
        yield


def manifest_of(**values):
    return prepare(KubernetesWorkerJobConfiguration, "kubernetes", **values).job_manifest


def spec_of(manifest):
    return manifest["spec"]["template"]["spec"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"gpu_count": 0, "tolerations": [], "node_selector": {"pool": "cpu"}, "labels": {"team": "a"}},
        {"gpu_count": 8, "shm_size": "64Gi", "env": {"HF_HUB_OFFLINE": "1"}, "name": "mine"},
    ],
)
def test_a_pods_manifest_is_valid(version, values):
    manifest = manifest_of(**values)
    for name in ("parallelism", "completions"):  # Prefect insists on them here, and Kubernetes ignores them
        assert spec_of(manifest).pop(name) == 1
    kubernetes_validate.validate(manifest, version, strict=True)


def test_a_pod_has_what_its_job_needs():
    manifest = manifest_of(gpu_count=2, shm_size="8Gi", namespace="research", node_selector={"gpu": "h200"})
    spec = spec_of(manifest)
    (container,) = spec["containers"]
    assert manifest["metadata"]["namespace"] == "research"
    assert (manifest["spec"]["backoffLimit"], manifest["spec"]["ttlSecondsAfterFinished"]) == (0, 3600)
    assert (spec["restartPolicy"], spec["terminationGracePeriodSeconds"]) == ("Never", 120)
    assert spec["nodeSelector"] == {"gpu": "h200"}
    assert container["args"] == ["python", "-m", "jobs.keeper"]
    assert container["image"] == "tuneyard:1"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 2
    volumes = {volume["name"]: volume["emptyDir"] for volume in spec["volumes"]}
    assert volumes["shm"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]


def test_a_pod_has_no_rights():
    spec = spec_of(manifest_of())
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_a_pod_has_secrets_by_reference_alone():
    manifest = manifest_of(secret="mine")
    entries = spec_of(manifest)["containers"][0]["env"]
    names = [entry["name"] for entry in entries]
    assert SECRET not in json.dumps(manifest)
    assert len(names) == len(set(names))
    by_name = {entry["name"]: entry for entry in entries}
    for name in (*REQUIRED_SECRETS, *OPTIONAL_SECRETS):
        reference = {"name": "mine", "key": name, "optional": name in OPTIONAL_SECRETS}
        assert by_name[name] == {"name": name, "valueFrom": {"secretKeyRef": reference}}
    assert by_name["PREFECT_API_URL"]["value"] == URL
    assert by_name["PREFECT_LOGGING_EXTRA_LOGGERS"]["value"] == "flows,tasks,sft,jobs"


class DaemonAway:
    """As much of Docker's client as is asked before a container is created."""

    api = docker.APIClient("http://127.0.0.1:9", version="1.43")

    def version(self):
        return {"Version": "28.0.0"}


def container_of(**values):
    configuration = prepare(DockerWorkerJobConfiguration, "docker", **values)
    worker = DockerWorker("docker-pool", test_mode=True)
    return worker._build_container_settings(DaemonAway(), configuration)


def test_a_container_has_what_its_job_needs_and_no_rights():
    settings = container_of(shm_size="8g", networks=["tuneyard"], mem_limit="64g")
    assert settings["image"] == "tuneyard:1"
    assert settings["command"] == "python -m jobs.keeper"
    assert settings["environment"]["NVIDIA_VISIBLE_DEVICES"] == "2,3"
    assert (settings["runtime"], settings["shm_size"], settings["mem_limit"]) == ("nvidia", "8g", "64g")
    assert (settings["user"], settings["read_only"], settings["cap_drop"]) == ("10001:10001", True, ["ALL"])
    assert settings["security_opt"] == ["no-new-privileges"]
    assert settings["auto_remove"] is False, "or the exit code of the job would be lost"


def test_a_container_has_secrets_by_file_alone():
    settings = container_of(secrets_folder="/srv/secrets")
    assert "/srv/secrets:/run/secrets:ro" in settings["volumes"]
    assert SECRET not in str(settings)
    assert not {*REQUIRED_SECRETS, *OPTIONAL_SECRETS} & settings["environment"].keys()


def test_a_container_is_what_dockers_client_takes(monkeypatch):
    """`docker` refuses an argument it doesn't know, before it connects."""
    monkeypatch.setattr(docker.APIClient, "create_container_from_config", lambda *_, **__: {"Id": "1"})
    monkeypatch.setattr(docker.APIClient, "inspect_container", lambda *_: {"Id": "1"})
    client = docker.DockerClient("http://127.0.0.1:9", version="1.43")
    settings = container_of()
    assert client.containers.create(**settings).id == "1"
    client.close()


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_a_changed_template_is_told_from_ours(kind):
    configuration = make_template(kind)["job_configuration"]
    assert is_ours(configuration)
    assert configuration["env"][MARK] == digest(configuration)
    configuration["env"]["MINE"] = "1"
    assert not is_ours(configuration)
    assert not is_ours({"env": "{{ env }}"})


def test_a_process_pool_has_the_workers_own_template():
    assert make_template("process") is None
