"""Base job templates of work pools: how a Docker or Kubernetes worker starts a job.

Secrets are in no template and no manifest. A pod refers to keys of a Kubernetes secret, a container reads files of a
folder on its host (the image's entry point sets variables from them), and the credentials for Prefect that a worker
would copy from its own environment are removed.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

STATE_FOLDER = "/var/lib/tuneyard"  # TUNEYARD_HOME in the image
SECRETS_FOLDER = "/run/secrets"
USER_ID = 10001  # of the image
GRACE_SECONDS = 120  # for the last checkpoint after SIGTERM
# A worker copies its own settings for Prefect into the job's environment: these are removed, and jobs get theirs.
OWNED = ("PREFECT_API_AUTH_STRING", "PREFECT_API_KEY", "PREFECT_CLIENT_CUSTOM_HEADERS")
REMOVED = (
    *OWNED,
    *("PREFECT_SERVER_API_AUTH_STRING", "PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_SERVER_DATABASE_PASSWORD"),
)
REQUIRED_SECRETS = ("TUNEYARD_DATABASE_URL",)
OPTIONAL_SECRETS = (
    *OWNED,
    *("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AZURE_STORAGE_CONNECTION_STRING"),
    *("HF_TOKEN", "WANDB_API_KEY", "TUNEYARD_DATASET_REGISTRY"),
)
GPUS_OF_WORKER = "$CUDA_VISIBLE_DEVICES"  # workers replace `$NAME` by their own environment's value
MARK = "TUNEYARD_JOB_TEMPLATE"  # digest of the template that a job was started from
TEXT = {"type": "string"}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}

Template = dict[str, Any]


@dataclass(frozen=True)
class TemplateOptions:
    """What `tuneyard deploy` sets in a template; None keeps the pool's value, or the template's default.

    `gpus` is the number of GPUs of a job: a pod's, or, in Docker, 0 or those of the worker's CUDA_VISIBLE_DEVICES.
    """

    image: str | None = None
    gpus: int | None = None
    namespace: str | None = None

    def unused(self, kind: str) -> list[str]:
        """The given options that a pool of this type does not use."""
        used = {"docker": ("image", "gpus"), "kubernetes": ("image", "gpus", "namespace")}.get(kind, ())
        return [name for name, value in vars(self).items() if value is not None and name not in used]

    def defaults(self, kind: str) -> dict[str, Any]:
        """The defaults of the template's variables that were given."""
        runtime = None if self.gpus is None else "nvidia" if self.gpus else "runc"
        own: dict[str, dict[str, Any]] = {
            "docker": {"runtime": runtime},
            "kubernetes": {"gpu_count": self.gpus, "namespace": self.namespace},
        }
        given = own.get(kind, {}) | {"image": self.image}
        return {name: value for name, value in given.items() if value is not None}


def make_template(kind: str) -> Template | None:
    """The template of a pool of this type, without an image; None for a type whose worker brings its own."""
    makers = {"docker": _docker, "kubernetes": _kubernetes}
    if kind not in makers:
        return None
    template = makers[kind]()
    template["job_configuration"]["env"][MARK] = digest(template["job_configuration"])
    return template


def digest(job_configuration: dict[str, Any]) -> str:
    """A short digest of a template's fixed part, apart from the digest in it."""
    env = job_configuration.get("env")
    rest = {name: value for name, value in env.items() if name != MARK} if isinstance(env, dict) else env
    canonical = json.dumps({**job_configuration, "env": rest}, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def is_ours(job_configuration: dict[str, Any]) -> bool:
    """Whether a version of Tuneyard made it, and nobody has changed it since."""
    env = job_configuration.get("env")
    return isinstance(env, dict) and env.get(MARK) == digest(job_configuration)


def _variables(**own: dict[str, Any]) -> dict[str, Any]:
    common = {
        "name": TEXT | {"description": "Name of the container or pod; the run's if unset."},
        "command": TEXT | {"description": "Set by the deployment."},
        "env": {
            "type": "object",
            "default": {},
            "additionalProperties": {"anyOf": [TEXT, {"type": "null"}]},
            "description": "Variables of jobs. Put no secrets here: everyone who can read the pool sees them.",
        },
        "labels": TEXTS | {"default": {}, "description": "Labels of containers and pods."},
        "image": TEXT | {"description": "Image that jobs run in."},
    }
    return {"type": "object", "required": ["image"], "properties": common | own}


def _docker() -> Template:
    variables = _variables(
        image_pull_policy=TEXT | {"enum": ["IfNotPresent", "Always", "Never"], "default": "IfNotPresent"},
        networks={"type": "array", "items": TEXT, "default": [], "description": "Docker networks of jobs."},
        secrets_folder=TEXT
        | {"default": "/etc/tuneyard/secrets", "description": "Folder on a worker's host: a file NAME sets NAME."},
        state_volume=TEXT
        | {"default": "tuneyard-jobs", "description": "Volume or folder on a worker's host for models and outputs."},
        runtime=TEXT | {"default": "nvidia", "description": "`nvidia` for GPUs, `runc` without."},
        shm_size=TEXT | {"default": "2g", "description": "Shared memory of a job, for several devices."},
        auto_remove={
            "type": "boolean",
            "default": False,
            "description": "Remove ended containers at once; their exit code is then lost.",
        },
        mem_limit=TEXT | {"description": "Memory limit of a job, such as `64g`; no limit if unset."},
        **{GPUS_OF_WORKER: TEXT | {"description": "Taken from the worker's environment; leave it unset."}},
    )
    configuration = {
        "name": "{{ name }}",
        "command": "{{ command }}",
        "labels": "{{ labels }}",
        "env": {
            **dict.fromkeys(REMOVED),
            "NVIDIA_VISIBLE_DEVICES": f"{{{{ {GPUS_OF_WORKER} }}}}",
        },
        "image": "{{ image }}",
        "image_pull_policy": "{{ image_pull_policy }}",
        "networks": "{{ networks }}",
        "volumes": [f"{{{{ secrets_folder }}}}:{SECRETS_FOLDER}:ro", f"{{{{ state_volume }}}}:{STATE_FOLDER}"],
        "mem_limit": "{{ mem_limit }}",
        "auto_remove": "{{ auto_remove }}",
        "stream_output": True,
        "container_create_kwargs": {
            "runtime": "{{ runtime }}",
            "shm_size": "{{ shm_size }}",
            "read_only": True,
            "tmpfs": {"/tmp": "mode=1777,exec"},  # noqa: S108 - the container's
            "user": f"{USER_ID}:{USER_ID}",
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
        },
    }
    return {"variables": variables, "job_configuration": configuration}


def _kubernetes() -> Template:
    variables = _variables(
        namespace=TEXT | {"default": "tuneyard", "description": "Namespace of the jobs."},
        image_pull_policy=TEXT | {"enum": ["IfNotPresent", "Always", "Never"], "default": "IfNotPresent"},
        service_account_name=TEXT
        | {"default": "tuneyard-job", "description": "Service account of the pods; it needs no rights."},
        config_map=TEXT | {"default": "tuneyard", "description": "Variables of jobs that are not secret."},
        secret=TEXT | {"default": "tuneyard-jobs", "description": "Secret with a key for each secret variable."},
        gpu_count={"type": "integer", "default": 1, "minimum": 0, "description": "GPUs of a job."},
        cpu_request=TEXT | {"default": "2", "description": "CPUs that a job requests."},
        memory_request=TEXT | {"default": "16Gi", "description": "Memory that a job requests."},
        memory_limit=TEXT | {"default": "64Gi", "description": "Memory limit of a job, shared memory included."},
        shm_size=TEXT | {"default": "2Gi", "description": "Shared memory of a job, for several devices."},
        state_size=TEXT | {"default": "100Gi", "description": "Disk of a job for its model, data and checkpoints."},
        node_selector=TEXTS | {"default": {}, "description": "Labels that a job's node must have."},
        tolerations={
            "type": "array",
            "items": {"type": "object"},
            "default": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "description": "Taints of nodes that a job may run on.",
        },
        finished_job_ttl={
            "type": "integer",
            "default": 3600,
            "description": "Seconds after which Kubernetes removes an ended job's pod.",
        },
    )
    configuration = {
        "name": "{{ name }}",
        "command": "{{ command }}",
        "labels": "{{ labels }}",
        "env": dict.fromkeys(REMOVED),
        "namespace": "{{ namespace }}",
        "stream_output": False,
        "pod_watch_timeout_seconds": 600,
        "job_manifest": {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"labels": "{{ labels }}", "namespace": "{{ namespace }}", "generateName": "{{ name }}-"},
            "spec": {
                "backoffLimit": 0,  # the watchdog gives a job its next attempt
                "ttlSecondsAfterFinished": "{{ finished_job_ttl }}",
                "template": {
                    "metadata": {"annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}},
                    "spec": _pod(),
                },
            },
        },
    }
    return {"variables": variables, "job_configuration": configuration}


def _pod() -> dict[str, Any]:
    secrets = dict.fromkeys(REQUIRED_SECRETS, False) | dict.fromkeys(OPTIONAL_SECRETS, True)
    container = {
        "name": "prefect-job",  # Prefect asks for this name
        "image": "{{ image }}",
        "imagePullPolicy": "{{ image_pull_policy }}",
        "args": "{{ command }}",
        "env": [
            {
                "name": name,
                "valueFrom": {"secretKeyRef": {"name": "{{ secret }}", "key": name, "optional": is_optional}},
            }
            for name, is_optional in secrets.items()
        ],
        "envFrom": [{"configMapRef": {"name": "{{ config_map }}"}}],
        "resources": {
            "requests": {"cpu": "{{ cpu_request }}", "memory": "{{ memory_request }}"},
            "limits": {"nvidia.com/gpu": "{{ gpu_count }}", "memory": "{{ memory_limit }}"},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "state", "mountPath": STATE_FOLDER},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - the pod's
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - the pod's
        ],
    }
    return {
        **{"parallelism": 1, "completions": 1},  # Prefect asks for them here; Kubernetes ignores them
        "restartPolicy": "Never",
        "serviceAccountName": "{{ service_account_name }}",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,  # else a service `tuneyard-api` would set TUNEYARD_API_PORT
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "nodeSelector": "{{ node_selector }}",
        "tolerations": "{{ tolerations }}",
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "state", "emptyDir": {"sizeLimit": "{{ state_size }}"}},
            {"name": "tmp", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "{{ shm_size }}"}},
        ],
    }
