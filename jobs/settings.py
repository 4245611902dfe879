"""All settings: one frozen object, read from the environment."""

from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from jobs.project import PROJECT_ROOT as PROJECT_ROOT
from jobs.project import default_home, expand_user
from jobs.setting_types import DatabaseUrl, Names, Networks, Secret, StoreUrl, WebhookSecrets
from jobs.url_credentials import is_http, split_credentials
from sft.planning.devices import Card

# For a server that the stack runs itself: the user's credentials are for another one.
NO_MLFLOW_CREDENTIALS = dict.fromkeys(
    ("mlflow_tracking_username", "mlflow_tracking_password", "mlflow_tracking_token"), None
)


class Settings(BaseSettings):
    """All settings. Their variables are prefixed with `TUNEYARD_`, except Prefect's and MLflow's own.

    `jobs.stack.local.ensure_up` returns a copy with `database_url`, `prefect_api_url` and `mlflow_tracking_uri` set;
    it starts nothing if all three are given.
    """

    model_config = SettingsConfigDict(
        env_prefix="TUNEYARD_",
        frozen=True,
        populate_by_name=True,
        extra="ignore",
        hide_input_in_errors=True,
        env_ignore_empty=True,
    )

    home: Path = Field(default_factory=default_home, description="State folder: database, logs, models, results.")
    model_root: Path = Field(Path("models"), description="Base models as `<org>/<name>`; relative to home.")
    output_root: Path = Field(Path("outputs"), description="Adapters and checkpoints; relative to home.")
    data_root: Path = Field(Path("data"), description="Data files that `dataset_name` may name; relative to home.")
    allowed_model_roots: tuple[Path, ...] = Field(
        (), description="JSON list of folders that links in the model root may point to; none if unset."
    )
    allowed_output_roots: tuple[Path, ...] = Field(
        (),
        description="JSON list of folders that an absolute `output_dir` may be in, besides the output root and the "
        "temporary folder.",
    )
    dataset_registry: str | None = Field(
        None, repr=False, description="Dataset registry, a git + DVC repository; built from `datasets/` if unset."
    )
    default_dataset: str = Field("handbook", description="Dataset that a bare revision such as `v1.0` refers to.")

    store: StoreUrl | None = Field(
        None,
        description="Store for what must outlive a machine: `s3://bucket/folder`, `gs://...`, `az://...`, or "
        "`file:///path` on a disk that all machines share. Checkpoints are sent there while a job trains, and fetched "
        "where it resumes. If unset they are only on the disk of the machine that trains.",
    )

    store_models: bool = Field(
        True,
        description="Put each job's base model into the store, once, so that machines without it can fetch it.",
    )
    model_cache_bytes: int | None = Field(
        None,
        gt=0,
        description="Space for base models that were fetched from the store; half of the disk of the state folder if "
        "unset. The least recently used are removed first, except those that a job uses.",
    )

    max_model_bytes: int = Field(
        500 * 10**9, gt=0, description="Largest base model that may be uploaded; a larger one gets 413."
    )

    host: str = Field("127.0.0.1", description="Address the API listens on.")
    api_port: int = Field(23478, ge=1, le=65535, description="Port of the API.")
    prefect_port: int = Field(4200, ge=1, le=65535, description="Port of the local Prefect server and UI.")
    mlflow_port: int = Field(5000, ge=1, le=65535, description="Port of the local MLflow server and UI.")
    workers: int | None = Field(
        None,
        gt=0,
        description="Local workers, each with one job at a time and an equal share of the GPUs: 2 workers on 4 GPUs "
        "give each job 2, for `num_devices` above 1. One per GPU if unset, one without a GPU.",
    )
    max_attempts: int = Field(
        3, gt=0, description="Lost attempts (a killed process, a lost worker) after which a job fails."
    )
    pod_start_seconds: float = Field(
        3600,
        gt=0,
        description="How long a job's container or pod may take to start, including pulling the image and waiting for "
        "a node; a process has 300 s. After that the attempt counts as lost.",
    )
    dtype: Literal["bf16", "fp16", "none"] | None = Field(
        None,
        description="The dtype of `mixed_precision: auto` on this machine (`none` is fp32); if unset, measured once "
        "and stored in `dtype.json` of the state folder.",
    )
    plan_devices: dict[str, Card] = Field(
        {},
        description="JSON object of devices of your own for `tuneyard plan --device NAME`: name to `memory_gib`, and "
        "optionally `teraflops`, `compute_capability` (8.9, say) and `bf16`.",
    )
    work_pool: str = Field("gpu", description="Prefect work pool jobs run in.")
    debug: bool = Field(
        False,
        description="Write the traceback of every error of a job to its log; the worker's log always has those of "
        "internal errors.",
    )
    start_timeout_seconds: float = Field(120, gt=0, description="How long the local stack may take to start.")

    input_memory_bytes: int | None = Field(
        None,
        gt=0,
        description="Memory limit for reading a job's rows, tokenizer and chat template, in a plan and in a job; "
        "beyond it the error is `resource_limit`. Half of the machine's if unset, and never more than is free.",
    )
    input_step_seconds: float = Field(
        10,
        gt=0,
        description="CPU time limit for one step of that (rendering a row, matching a pattern against the layers), "
        "plus 5 s per MiB.",
    )
    input_seconds: float = Field(86400, ge=1, description="CPU time limit for all of that, summed over cores.")
    serving_check_seconds: float = Field(
        300,
        ge=0,
        description="Time limit for the check of a saved adapter before it is registered, in a process that has "
        "transformers and PEFT alone; 0 turns the check off.",
    )
    keep_planner: bool = Field(
        True, description="Keep a planner process of 500 MB ready, so that a plan takes 3 s instead of 11 s."
    )
    generation_idle_seconds: float = Field(
        300,
        gt=0,
        description="Idle time after which the process that answers `/v1` requests ends and frees its memory.",
    )
    generation_seconds: float = Field(
        600, gt=0, description="Time limit for an answer of `/v1`, including loading the model and waiting for others."
    )
    generation_engine: Literal["auto", "transformers", "vllm"] = Field(
        "auto",
        description="What generates the answers of `/v1`: transformers, or a vLLM that is installed on this machine. "
        "`auto` is vLLM where it is found and a GPU is there.",
    )
    vllm: Path | None = Field(
        None,
        description="Absolute path of the command `vllm` in its own environment; the one on `PATH` or beside "
        "Tuneyard's Python if unset.",
    )
    max_generations: int = Field(
        16,
        gt=0,
        description="Maximum requests for answers that run or wait, counted as `TUNEYARD_MAX_PLANS` counts plans.",
    )
    keep_events_days: int = Field(
        90, gt=0, description="Days for which the events and metrics of ended jobs are kept; MLflow's are not deleted."
    )

    require_api_key: bool = Field(False, description="Require an API key even if none exists yet.")
    submit_keys_see: Literal["own", "all"] = Field(
        "own", description="Jobs that a `submit` key can see and cancel: those it created, or all."
    )
    read_keys_see: Literal["own", "all"] = Field(
        "all",
        description="Jobs that a `read` key sees. A key created with `--of` sees only the other key's jobs, regardless "
        "of this setting; with `own` all other `read` keys see none.",
    )
    max_body_bytes: int = Field(2**20, gt=0, description="Largest request body; a larger one gets 413.")
    body_timeout_seconds: float = Field(
        60,
        gt=0,
        description="Time limit for a client to send a request's body, or each MiB of a file; later it gets 408.",
    )
    max_upload_bytes: int = Field(
        5 * 10**9, gt=0, description="Largest file that can be added as a dataset; a larger one gets 413."
    )
    max_uploads: int = Field(
        32,
        gt=0,
        description="Maximum files that a key, or an address without keys, uploads at once to an API process; more get "
        "429. Two of one client are checked at once.",
    )
    keep_uploads_hours: float = Field(
        24, gt=0, le=8760, description="Hours after which an upload in parts that was not completed is removed."
    )
    max_connections: int | None = Field(
        None,
        gt=0,
        description="Maximum connections of an API process; half of its open files (`ulimit -n`), at most 4096, if "
        "unset. Beyond it, connections that keep the API waiting are closed, or else new ones get 503 "
        "`too_many_connections`.",
    )
    max_streams: int = Field(
        200,
        gt=0,
        description="Maximum event and log streams per key, or per address without keys, in an API process; more get "
        "429.",
    )
    max_plans: int = Field(
        16,
        gt=0,
        description="Maximum plans that run or wait per key, or per address without keys, in an API process; more get "
        "429. Two run at once for one client.",
    )
    rate_limit: str | None = Field(
        None,
        description="Request rate such as `600/minute`, per key, or per address without a valid one. Refused requests "
        "count too; each API process counts by itself. No limit if unset.",
    )
    allowed_hosts: Names = Field(
        (),
        description="Accepted names in the `Host` header besides `localhost`, `127.0.0.1` and the address a request "
        "arrives at, such as a container's or a reverse proxy's; `*` for all. Applies to the API while no key is in "
        "use, and to Prefect's and MLflow's ports; other names get 421, and web pages of other origins 403.",
    )
    cors_origins: tuple[str, ...] = Field(
        (),
        description="JSON list of web origins whose pages may call the API, `*` for all; none if unset. While no key "
        "is in use, others get 403.",
    )

    webhook_secrets: WebhookSecrets = Field(
        (),
        description="`whsec_...` secrets that sign webhooks, several during a rotation; unsigned if unset.",
    )
    webhook_allow: Networks = Field(
        (), description="Networks that webhooks may call besides public addresses, such as `10.0.0.0/8,127.0.0.1`."
    )

    database_url: DatabaseUrl | None = Field(
        None, repr=False, description="PostgreSQL URL of Tuneyard's database; started locally if unset."
    )
    trainer_database_url: DatabaseUrl | None = Field(
        None,
        repr=False,
        description="The database with the role that `tuneyard trainer-role` creates, for the workers of this stack, "
        "whose jobs can then write only their own rows. The local database has such a role. Workers elsewhere get this "
        "URL as `TUNEYARD_DATABASE_URL`.",
    )
    prefect_api_url: str | None = Field(
        None,
        validation_alias=AliasChoices("PREFECT_API_URL"),
        description="Your Prefect server's API; started locally if unset. Credentials in it are not shown.",
    )
    prefect_auth_string: Secret | None = Field(
        None,
        validation_alias=AliasChoices("PREFECT_API_AUTH_STRING"),
        description="`user:password` for `PREFECT_API_URL`; the local server has its own.",
    )
    mlflow_tracking_uri: str | None = Field(
        None,
        validation_alias=AliasChoices("MLFLOW_TRACKING_URI"),
        description="Your MLflow server; started locally if unset. Credentials in it are used and shown nowhere.",
    )
    mlflow_tracking_username: str | None = Field(
        None,
        repr=False,
        validation_alias=AliasChoices("MLFLOW_TRACKING_USERNAME"),
        description="User of `MLFLOW_TRACKING_URI`.",
    )
    mlflow_tracking_password: Secret | None = Field(
        None, validation_alias=AliasChoices("MLFLOW_TRACKING_PASSWORD"), description="That user's password."
    )
    mlflow_tracking_token: Secret | None = Field(
        None,
        validation_alias=AliasChoices("MLFLOW_TRACKING_TOKEN"),
        description="Token for `MLFLOW_TRACKING_URI`, used if there is no password.",
    )

    @model_validator(mode="before")
    @classmethod
    def _take_credentials_out_of_urls(cls, values: Any) -> Any:
        """Server URLs are shown in many places, so their credentials are moved to separate fields."""
        for alias in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
            name = next((name for name in (alias, alias.lower()) if values.get(name)), None)
            if name is None or not isinstance(values[name], str):
                continue
            address, username, password = split_credentials(values[name])
            if not is_http(address) or not (username or password):
                continue
            found = {"MLFLOW_TRACKING_USERNAME": username, "MLFLOW_TRACKING_PASSWORD": password}
            if alias == "PREFECT_API_URL":
                found = {"PREFECT_API_AUTH_STRING": f"{username or ''}:{password or ''}"}
            values = values | {name: address} | found
        return values

    def model_post_init(self, _context: object) -> None:
        """Resolve all paths: home relative to the current folder, the others relative to home."""
        home = expand_user(self.home, "TUNEYARD_HOME").resolve()
        object.__setattr__(self, "home", home)
        for name in ("model_root", "output_root", "data_root"):
            object.__setattr__(
                self, name, (home / expand_user(getattr(self, name), f"TUNEYARD_{name.upper()}")).resolve()
            )
        for name in ("allowed_model_roots", "allowed_output_roots"):
            object.__setattr__(self, name, tuple(root.expanduser().resolve() for root in getattr(self, name)))

    @property
    def is_external(self) -> bool:
        """Whether all servers are external, so that nothing is started here."""
        return None not in (self.database_url, self.prefect_api_url, self.mlflow_tracking_uri)
