"""Work pools on a real Prefect server, and a real worker that starts a job from one."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from uuid import uuid4

import httpx
import pytest

from jobs.settings import Settings
from jobs.stack.deployments import read_deployments
from jobs.stack.job_templates import TemplateOptions
from jobs.stack.parts import stack_environment
from jobs.stack.work_pools import set_up_pool
from sft.errors import StackError
from tests.jobs.stack.scripted_cluster import ScriptedCluster

pytestmark = pytest.mark.stack
IMAGE = TemplateOptions(image="registry.example/tuneyard:1")


@pytest.fixture
def settings(stack: Settings) -> Iterator[Settings]:
    """Of a work pool of the test's own, which is removed."""
    own = stack.model_copy(update={"work_pool": f"pool-{uuid4().hex[:8]}"})
    yield own
    httpx.delete(f"{own.prefect_api_url}/work_pools/{own.work_pool}", timeout=30)


def default_of(pool, name):
    return pool["base_job_template"]["variables"]["properties"][name].get("default")


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_a_pool_is_made_and_brought_up_to_date(settings: Settings, kind: str):
    made = set_up_pool(settings, 3, kind, IMAGE).pool
    assert (made["type"], made["concurrency_limit"], default_of(made, "image")) == (kind, 3, IMAGE.image)
    again = set_up_pool(settings, None, None, TemplateOptions(image="tuneyard:2"))
    assert not again.is_template_kept
    assert (again.pool["concurrency_limit"], default_of(again.pool, "image")) == (3, "tuneyard:2")


def test_values_that_were_set_stay_and_a_changed_manifest_too(settings: Settings):
    pool = set_up_pool(settings, None, "kubernetes", IMAGE).pool
    template = pool["base_job_template"]
    template["variables"]["properties"]["shm_size"]["default"] = "64Gi"
    change(settings, template)
    updated = set_up_pool(settings, None, "kubernetes", TemplateOptions(gpus=8))
    assert not updated.is_template_kept
    assert (default_of(updated.pool, "shm_size"), default_of(updated.pool, "gpu_count")) == ("64Gi", 8)

    template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]["priorityClassName"] = "batch"
    change(settings, template)
    kept = set_up_pool(settings, None, None, IMAGE)
    assert kept.is_template_kept
    assert "priorityClassName" in str(kept.pool["base_job_template"])
    reset = set_up_pool(settings, None, None, IMAGE, resets_template=True)
    assert not reset.is_template_kept
    assert "priorityClassName" not in str(reset.pool["base_job_template"])
    assert default_of(reset.pool, "shm_size") == "2Gi"


def change(settings: Settings, template: dict[str, object]) -> None:
    url = f"{settings.prefect_api_url}/work_pools/{settings.work_pool}"
    httpx.patch(url, json={"base_job_template": template}, timeout=30).raise_for_status()


def test_an_image_and_the_right_type_are_asked_for(settings: Settings):
    with pytest.raises(StackError, match="need an image; name it with --image"):
        set_up_pool(settings, None, "docker", TemplateOptions())
    for kind, options, named in (
        ("process", TemplateOptions(image="tuneyard:1", gpus=2), "--image, --gpus"),
        ("docker", TemplateOptions(image="tuneyard:1", namespace="ml"), "--namespace"),
    ):
        with pytest.raises(StackError, match=f"a {kind} work pool has no use for {named}$"):
            set_up_pool(settings, None, kind, options)
    assert set_up_pool(settings, None, None, TemplateOptions()).pool["type"] == "process"
    with pytest.raises(StackError, match=r"is of type process, not kubernetes; .* TUNEYARD_WORK_POOL"):
        set_up_pool(settings, None, "kubernetes", IMAGE)


@pytest.mark.timeout(300)
def test_a_worker_starts_a_pod_for_a_run(settings: Settings, tmp_path):
    """Prefect's server, its worker, and a cluster that notes what it is told to create."""
    set_up_pool(settings, None, "kubernetes", TemplateOptions(image="tuneyard:1", gpus=2, namespace="research"))
    with (
        closing(ScriptedCluster()) as cluster,
        httpx.Client(base_url=f"{settings.prefect_api_url}", timeout=30) as prefect,
    ):
        flow = prefect.post("/flows/", json={"name": "finetune"}).raise_for_status().json()
        variables = read_deployments()[0]["work_pool"]["job_variables"]
        deployment = {"name": settings.work_pool, "flow_id": flow["id"], "work_pool_name": settings.work_pool}
        made = prefect.post("/deployments/", json=deployment | {"job_variables": variables}).raise_for_status().json()
        try:
            run = prefect.post(f"/deployments/{made['id']}/create_flow_run", json={}).raise_for_status().json()
            environment = stack_environment(settings) | {
                "KUBECONFIG": str(cluster.write_kubeconfig(tmp_path / "kubeconfig")),
                "PREFECT_API_AUTH_STRING": "user:a-secret-of-the-worker",
                "PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_ENABLED": "false",
            }
            words = ["worker", "start", "--pool", settings.work_pool, "--type", "kubernetes", "--run-once"]
            done = subprocess.run(
                [sys.executable, "-m", "prefect", *words, "--install-policy", "never"],
                env=os.environ | environment,
                capture_output=True,
                text=True,
                timeout=250,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            (manifest,) = cluster.created
        finally:
            prefect.delete(f"/deployments/{made['id']}")
    assert "a-secret-of-the-worker" not in str(manifest)
    assert manifest["metadata"]["namespace"] == "research"
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    assert {"name": "PREFECT__FLOW_RUN_ID", "value": run["id"]} in container["env"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert container["args"] == ["python", "-m", "jobs.keeper"]
