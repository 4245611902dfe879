"""deploy/kubernetes: valid by Kubernetes' schemas, and fitting the job template and the settings."""

import json
import shutil
import subprocess
from typing import Any

import kubernetes_validate
import pytest
import yaml

from jobs.project import PROJECT_ROOT
from jobs.settings import Settings
from jobs.stack import job_templates

FOLDER = PROJECT_ROOT / "deploy" / "kubernetes"
EXAMPLE = PROJECT_ROOT / "deploy" / "kubernetes-example"
VERSIONS = ("1.29", "1.33", kubernetes_validate.latest_version())
NAMED = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]


def read_all(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8")))


OBJECTS = [found for name in NAMED for found in read_all(name)]
WORKLOADS = [found for found in OBJECTS if found["kind"] in ("Deployment", "Job")]
SECRETS = {found["metadata"]["name"]: found["stringData"] for found in read_all("secrets.example.yaml")}


def find(kind: str, name: str) -> dict[str, Any]:
    (found,) = [found for found in OBJECTS if (found["kind"], found["metadata"]["name"]) == (kind, name)]
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid(version):
    for found in [*OBJECTS, *read_all("secrets.example.yaml")]:
        kubernetes_validate.validate(found, version, strict=True)


def test_every_file_is_applied_but_the_example_of_secrets():
    assert {path.name for path in FOLDER.glob("*.yaml")} == {*NAMED, "kustomization.yaml", "secrets.example.yaml"}
    assert not [found for found in OBJECTS if found["kind"] == "Secret"]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl, which has kustomize in it")
@pytest.mark.parametrize("folder", [FOLDER, EXAMPLE], ids=lambda folder: folder.name)
def test_kustomize_renders_valid_objects_of_one_namespace(folder):
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rendered = list(yaml.safe_load_all(done.stdout))
    assert len(rendered) == len(OBJECTS)
    assert {found["metadata"]["namespace"] for found in rendered} == {"tuneyard"}
    for found in rendered:
        kubernetes_validate.validate(found, VERSIONS[-1], strict=True)
    (setup,) = [found for found in rendered if found["kind"] == "Job"]
    container = setup["spec"]["template"]["spec"]["containers"][0]
    assert {"name": "IMAGE", "value": container["image"]} in container["env"], "jobs run in the image of the setup"


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda found: found["metadata"]["name"])
def test_a_pod_has_few_rights(workload):
    pod = workload["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["enableServiceLinks"] is False, "a service's variables would be read as settings"
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == job_templates.USER_ID
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"]["limits"]["memory"]
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted == {job_templates.STATE_FOLDER, "/tmp"}
    has_account = "serviceAccountName" in pod
    assert has_account == (workload["metadata"]["name"] == "tuneyard-worker")
    assert has_account or pod["automountServiceAccountToken"] is False


def test_two_watchdogs_and_apis_survive_a_drained_node():
    for name in ("tuneyard-api", "tuneyard-watchdog"):
        assert find("Deployment", name)["spec"]["replicas"] == 2
        budget = find("PodDisruptionBudget", name)["spec"]
        labels = find("Deployment", name)["spec"]["template"]["metadata"]["labels"]
        assert budget["minAvailable"] == 1
        assert budget["selector"]["matchLabels"].items() <= labels.items()


def test_the_api_is_asked_for_its_health():
    container = find("Deployment", "tuneyard-api")["spec"]["template"]["spec"]["containers"][0]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/health", "port": "http"}
    assert container["ports"] == [{"name": "http", "containerPort": Settings.model_fields["api_port"].default}]
    service = find("Service", "tuneyard-api")["spec"]
    assert service["ports"][0]["targetPort"] == "http"


def test_the_worker_may_do_what_a_worker_does_in_its_namespace_alone():
    assert not [found for found in OBJECTS if found["kind"].startswith("Cluster")]
    rules = {rule["apiGroups"][0]: rule for rule in find("Role", "tuneyard-worker")["rules"]}
    assert {"create", "delete", "get", "list", "watch"} <= set(rules["batch"]["verbs"])
    assert "secrets" not in json.dumps(list(rules.values()))
    container = find("Deployment", "tuneyard-worker")["spec"]["template"]["spec"]["containers"][0]
    names = {entry["name"] for entry in container["env"]}
    assert "PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACES" in names
    assert container["envFrom"] == [{"configMapRef": {"name": "tuneyard"}}], "with no secret but Prefect's"
    assert not {"TUNEYARD_DATABASE_URL", "MLFLOW_TRACKING_PASSWORD"} & names


def test_names_fit_those_of_the_job_template():
    template = job_templates.make_template("kubernetes")
    defaults = {name: schema.get("default") for name, schema in template["variables"]["properties"].items()}
    assert find("ConfigMap", defaults["config_map"])
    assert find("ServiceAccount", defaults["service_account_name"])["automountServiceAccountToken"] is False
    assert set(SECRETS[defaults["secret"]]) <= {*job_templates.REQUIRED_SECRETS, *job_templates.OPTIONAL_SECRETS}
    jobs_url, owners_url = (SECRETS[name]["TUNEYARD_DATABASE_URL"] for name in ("tuneyard-jobs", "tuneyard-service"))
    assert ("TRAINER" in jobs_url, "OWNER" in owners_url) == (True, True)


def test_variables_are_settings_that_exist():
    ours = {f"TUNEYARD_{name.upper()}" for name in Settings.model_fields}
    given = {name for found in (find("ConfigMap", "tuneyard")["data"], *SECRETS.values()) for name in found}
    assert {name for name in given if name.startswith("TUNEYARD_")} <= ours | {"TUNEYARD_STORE"}
