"""Where things are and how they are reached: one frozen object, read from the environment."""

import re
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, PlainSerializer, SecretStr
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from jobs.project import PROJECT_ROOT as PROJECT_ROOT
from jobs.project import default_home
from jobs.signing import read_secret
from sft.errors import InvalidConfig, StackError
from sft.places import find_foreign, find_temporary, follow


def _split(value: Any) -> Any:
    return re.split(r"[\s,]+", value.strip()) if isinstance(value, str) and value.strip() else value or ()


def _check_secret(secret: SecretStr) -> SecretStr:
    read_secret(secret.get_secret_value())
    return secret


# Lists as one writes them into a variable: separated by commas or blanks.
Networks = Annotated[
    tuple[IPv4Network | IPv6Network, ...],
    NoDecode,
    BeforeValidator(_split),
    PlainSerializer(lambda networks: ",".join(map(str, networks)), return_type=str, when_used="json"),
]
Names = Annotated[
    tuple[str, ...],
    NoDecode,
    BeforeValidator(_split),
    PlainSerializer(lambda names: ",".join(names), return_type=str, when_used="json"),
]
Secrets = Annotated[
    tuple[Annotated[SecretStr, AfterValidator(_check_secret)], ...],
    NoDecode,
    BeforeValidator(_split),
    # For the environment and the planner's pipe, nothing else is made of settings as JSON.
    PlainSerializer(lambda values: ",".join(v.get_secret_value() for v in values), return_type=str, when_used="json"),
]


def _expand(path: Path, variable: str) -> Path:
    """The path with `~` replaced. Raises StackError for a user whose home is not known."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise StackError(f"{variable} is {str(path)!r}, and no home folder is known for that; write it out") from error


class Settings(BaseSettings):
    """Every setting, `TUNEYARD_` in front of its name; Prefect's and MLflow's own variables are read as they are.

    `jobs.stack.ensure_up` returns a copy in which `database_url`, `prefect_api_url` and `mlflow_tracking_uri`
    are filled in; with all three set from outside it starts nothing.
    """

    model_config = SettingsConfigDict(
        env_prefix="TUNEYARD_",
        frozen=True,
        populate_by_name=True,
        extra="ignore",
        hide_input_in_errors=True,
        env_ignore_empty=True,
    )

    home: Path = Field(default_factory=default_home, description="State folder: database, logs, models, outputs.")
    model_root: Path = Field(Path("models"), description="Base models as <org>/<name>; relative to home.")
    output_root: Path = Field(Path("outputs"), description="Adapters and checkpoints; relative to home.")
    data_root: Path = Field(Path("data"), description="Files a dataset_name may name; relative to home.")
    allowed_model_roots: tuple[Path, ...] = Field(
        (), description="Folders outside the model root that links in it may lead to, as a JSON list; none if unset."
    )
    allowed_output_roots: tuple[Path, ...] = Field(
        (), description="Further roots an absolute output_dir may lie under, beside output_root and the temp folder."
    )
    dataset_registry: str | None = Field(
        None, repr=False, description="git + DVC repository; built from datasets/ if unset."
    )
    default_dataset: str = Field("handbook", description="Dataset a bare revision such as v1.0 refers to.")

    host: str = Field("127.0.0.1", description="Address the API listens on.")
    api_port: int = Field(23478, ge=1, le=65535, description="Port of the API.")
    prefect_port: int = Field(4200, ge=1, le=65535, description="Port of the local Prefect server and UI.")
    mlflow_port: int = Field(5000, ge=1, le=65535, description="Port of the local MLflow server and UI.")
    workers: int | None = Field(
        None, gt=0, description="Local workers, which share the GPUs out; one per GPU if unset, one without a GPU."
    )
    max_attempts: int = Field(
        3, gt=0, description="Attempts at a job that may be lost (to a killed process, say) before it has failed."
    )
    dtype: Literal["bf16", "fp16", "none"] | None = Field(
        None, description="What `mixed_precision: auto` is on this machine; measured once and kept if unset."
    )
    work_pool: str = Field("gpu", description="Prefect work pool jobs run in.")
    debug: bool = Field(False, description="Write the traceback of every error of a job into its log.")
    start_timeout_seconds: float = Field(120, gt=0, description="How long the local stack may take to start.")

    input_memory_bytes: int | None = Field(
        None,
        gt=0,
        description="Memory that reading a job's rows, tokenizer and chat template may take; half of the machine's if "
        "unset, and never more than is free.",
    )
    input_step_seconds: float = Field(
        10, gt=0, description="CPU time of one step of it: a row written by the template, a pattern; plus 5 s a MiB."
    )
    input_seconds: float = Field(86400, ge=1, description="CPU time of all of it, over all cores.")
    keep_planner: bool = Field(
        True, description="Keep a planner process of 500 MB ready beside the API; else the first plan starts it."
    )
    keep_events_days: int = Field(
        90, gt=0, description="How long the events and metrics of a job that has ended are kept; MLflow keeps them on."
    )

    require_api_key: bool = Field(False, description="Ask for an API key even before one has been made.")
    max_body_bytes: int = Field(2**20, gt=0, description="Largest request body the API reads.")
    body_timeout_seconds: float = Field(60, gt=0, description="How long a client may take to send a request's body.")
    max_connections: int | None = Field(
        None,
        gt=0,
        description="Connections of an API process; half of its open files (ulimit -n), at most 4096, if unset.",
    )
    max_streams: int = Field(
        200,
        gt=0,
        description="Streams of events and logs that a key, or without keys an address, may have open at a process.",
    )
    max_plans: int = Field(
        16,
        gt=0,
        description="Plans that a key, or without keys an address, may have made or waiting at a process.",
    )
    rate_limit: str | None = Field(
        None,
        description="Requests of a key, or without a valid one of an address, such as `600/minute`; counted in each "
        "API process, those refused with 401 included; no limit if unset.",
    )
    allowed_hosts: Names = Field(
        (),
        description="Host names that are answered beside localhost and the address that is listened on, such as those "
        "of a container or a reverse proxy, `*` for every one. While API keys are in use the API answers to all.",
    )
    cors_origins: tuple[str, ...] = Field(
        (), description="Web origins whose pages may call the API, as a JSON list; none if unset, `*` for every one."
    )

    webhook_secrets: Secrets = Field(
        (),
        description="`whsec_...` secrets that webhooks are signed with, each of them while one is rotated; unsigned if "
        "unset.",
    )
    webhook_allow: Networks = Field(
        (), description="Networks a webhook may lead to beside public addresses, such as `10.0.0.0/8,127.0.0.1`."
    )

    database_url: str | None = Field(None, repr=False, description="PostgreSQL URL of Tuneyard's own database.")
    prefect_api_url: str | None = Field(
        None, validation_alias=AliasChoices("PREFECT_API_URL"), description="Prefect API; started locally if unset."
    )
    prefect_auth_string: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("PREFECT_API_AUTH_STRING"),
        description="`user:password` that PREFECT_API_URL asks for; the local one has its own.",
    )
    mlflow_tracking_uri: str | None = Field(
        None, validation_alias=AliasChoices("MLFLOW_TRACKING_URI"), description="MLflow; started locally if unset."
    )

    def model_post_init(self, _context: object) -> None:
        """Resolve every path: home against the current folder, the others against home."""
        home = _expand(self.home, "TUNEYARD_HOME").resolve()
        object.__setattr__(self, "home", home)
        for name in ("model_root", "output_root", "data_root"):
            object.__setattr__(self, name, (home / _expand(getattr(self, name), f"TUNEYARD_{name.upper()}")).resolve())
        for name in ("allowed_model_roots", "allowed_output_roots"):
            object.__setattr__(self, name, tuple(root.expanduser().resolve() for root in getattr(self, name)))

    @property
    def is_external(self) -> bool:
        """Whether every server is somebody else's, so that nothing is started here."""
        return None not in (self.database_url, self.prefect_api_url, self.mlflow_tracking_uri)

    def output_folder(self, output_dir: str | None) -> Path:
        """Where a job with this `output_dir` puts its own folder; nothing is made.

        Raises:
            InvalidConfig: when it would lie outside every allowed root, links followed.
        """
        further = [find_temporary(), *self.allowed_output_roots]
        is_absolute = output_dir is not None and Path(output_dir).is_absolute()
        allowed = [self.output_root, *further] if is_absolute else [self.output_root]
        folder = follow(output_dir or "", self.output_root, allowed)
        if folder is None:
            roots = ", ".join(str(root) for root in allowed)
            raise InvalidConfig(f"output_dir must lie under one of {roots}, got {output_dir!r}")
        shared = find_temporary()
        if follow(str(folder), shared) and (foreign := find_foreign(folder, shared)):
            raise InvalidConfig(
                f"output_dir: another account may write to {foreign}; name a folder of this account, got {output_dir!r}"
            )
        return folder
