"""`JobOptions`, the options of a job besides its configuration, and `JobSpec`, configuration and options.

The requests of both APIs inherit the options; docs/how-to/add-an-option.md shows how to add one.
"""

import functools
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal, NamedTuple, Self
from urllib.parse import urlsplit
from uuid import UUID

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from jobs.sanitizing.storable import find_unstorable_text
from sft.config import JOB_BYTES, PATH_CHARACTERS, PathText, SFTConfig
from sft.errors import InvalidConfig
from sft.explanations import PLACES, Matching, explain_validation_error
from sft.rules import GIVEN, NULL, Rule
from tuneyard_wire.dataset_reference import DatasetReference
from tuneyard_wire.fields import Priority, TrackingBackend, WebhookEvent

WebhookEvents = Annotated[tuple[WebhookEvent, ...], Field(min_length=1, max_length=16)]
MetadataKey = Annotated[str, Matching(r"^[A-Za-z0-9_.\-]{1,64}$", "must be 1 to 64 letters, digits, '.', '_' and '-'")]
AdapterName = Annotated[
    str,
    Field(max_length=200),
    Matching(
        "^[A-Za-z0-9][A-Za-z0-9._-]*$",
        "may contain letters, digits, '.', '_' and '-', and must start with a letter or digit",
    ),
]
MetadataValue = Annotated[str, StringConstraints(max_length=256)]
Metadata = Annotated[
    dict[MetadataKey, MetadataValue], Field(max_length=16, json_schema_extra={"additionalProperties": False})
]
WebhookUrl = Annotated[
    PathText, WithJsonSchema({"type": "string", "format": "uri", "maxLength": PATH_CHARACTERS})
]  # checked by `JobOptions`

_URL_CHARACTERS = re.compile(r"([A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+")  # RFC 3986
MAX_CACHED_CHARACTERS = 16384  # of a job's parameters
DERIVED_CHARACTERS = 100  # of several datasets' names in that of an adapter
OWNER_PREFIX = "owner:"
RESERVED_KEY = "__prefect_kind"  # Prefect interprets a mapping with this key


class SavedConfigRef(BaseModel):
    """The version of the saved configuration that a job was created from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config_id: str = Field(description="Id of the configuration.")
    version: int = Field(description="Version of the configuration.")
    name: str = Field(description="Name of the configuration.")


class MadeBy(BaseModel):
    """The flow run that created a job."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    flow: Literal["retrain"] = Field(description="Name of the flow.")
    run_id: str = Field(description="Id of the flow run in Prefect.")
    adapter_version: str = Field(description="Version of the adapter that is retrained.")
    reason: str = Field(description="Why, in a sentence.")
    fingerprint: str = Field(description="Digest of data, configuration and base model, to create such a job once.")


# Rules between options; requests show them in the OpenAPI document.
OPTION_RULES = (
    Rule(
        {"webhook_events": NULL},
        {"webhook_events": GIVEN, "webhook_url": GIVEN},
        {"webhook_url": "webhook_events needs webhook_url; give the URL to call"},
    ),
)


class JobOptions(BaseModel):
    """The options of a job besides its configuration. Fields, defaults and rules are declared only here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    adapter_name: AdapterName | None = Field(
        None, description="The adapter's name in the registry; derived from model and dataset if unset."
    )
    tracking_backend: TrackingBackend = Field("mlflow", description="Where per-step metrics are shown.")
    webhook_url: WebhookUrl | None = Field(None, description="Called once the job has ended; http or https.")
    webhook_events: WebhookEvents | None = Field(
        None, description="Events besides the end that call it: `started`, and `checkpoint` for each saved one."
    )
    metadata: Metadata | None = Field(None, description="Up to 16 labels (text pairs), by which jobs can be filtered.")

    @field_validator("webhook_url")
    @classmethod
    def _check_url(cls, url: str | None) -> str | None:
        if url is None:
            return None
        try:
            parts = urlsplit(url)
            port_is_valid = parts.port is None or parts.port > 0
        except ValueError as error:
            raise ValueError(f"must be an http or https URL ({error})") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_valid:
            raise ValueError("must be an http or https URL")
        if parts.username is not None or parts.password is not None:
            raise ValueError("must have no user name and no password; the signature authenticates a delivery")
        if not _URL_CHARACTERS.fullmatch(url):
            raise ValueError("must be an http or https URL; percent-encode other characters as %XX")
        return url

    @field_validator("metadata")
    @classmethod
    def _check_metadata(cls, metadata: Metadata | None) -> Metadata | None:
        if metadata and RESERVED_KEY in metadata:
            raise ValueError(f"the key {RESERVED_KEY} is reserved; use another key")
        return metadata

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        for rule in OPTION_RULES:
            rule.check(self)
        return self


PLACES.update(dict.fromkeys(JobOptions.model_fields, "send it beside config when you start a job"))


class SubmissionOptions(JobOptions):
    """The options of a request: those of the job, and its priority, which is stored only as its Prefect work queue."""

    priority: Priority = Field("normal", description="Jobs of a higher priority start first.")


class JobSpec(JobOptions):
    """A job's configuration and options. Its dump is the parameters of the `finetune` flow."""

    config: SFTConfig = Field(description="Configuration of the training.")
    saved_config: SavedConfigRef | None = Field(None, description="The saved configuration that `config` is based on.")
    made_by: MadeBy | None = Field(None, description="The flow run that created the job, if no client did.")

    @model_validator(mode="after")
    def _check_text(self) -> "JobSpec":
        check_storable(self.model_dump())
        return self

    @model_validator(mode="after")
    def _check_size(self) -> "JobSpec":
        if (size := len(self.model_dump_json().encode())) > JOB_BYTES:
            raise ValueError(f"a job may have at most {JOB_BYTES} bytes as JSON, it has {size}; shorten its lists")
        return self

    @classmethod
    def build(cls, **values: Any) -> "JobSpec":
        """Validate plain values. Raises InvalidConfig with every problem, one per line."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InvalidConfig(explain_validation_error(error, cls)) from error

    @property
    def datasets(self) -> tuple[DatasetReference, ...]:
        """The datasets to train on."""
        return tuple(DatasetReference.parse(source.name) for source in self.config.sources)

    @property
    def registered_name(self) -> str:
        """The adapter's name in the registry: adapter_name, or one derived from base model and dataset."""
        if self.adapter_name:
            return self.adapter_name
        model = self.config.base_model.rsplit("/", 1)[-1]
        names = "-".join(dict.fromkeys(dataset.last_name for dataset in self.datasets))
        if len(self.datasets) > 1:
            names = names[:DERIVED_CHARACTERS]
        return re.sub(r"[^a-z0-9._-]+", "-", f"{model}-{names}".lower()).strip("-._") or "adapter"

    def tags(self) -> list[str]:
        """Tags of the job's run, used as filters: model, adapter, datasets (with and without revision), metadata."""
        names = {f"dataset:{name}" for dataset in self.datasets for name in (dataset, dataset.name)}
        pairs = [metadata_tag(key, value) for key, value in (self.metadata or {}).items()]
        made_by = [made_by_tag(self.made_by.flow)] if self.made_by else []
        return [f"model:{self.config.base_model}", f"adapter:{self.registered_name}", *sorted(names), *pairs, *made_by]

    def to_parameters(self) -> dict[str, Any]:
        """Plain JSON values for the flow run."""
        return self.model_dump(mode="json")


def check_storable(values: Mapping[str, Any]) -> None:
    """Raise ValueError, which names the field, if text can't be stored in the database."""
    if found := find_unstorable_text(values):
        raise ValueError(f"{'.'.join(found)} must contain neither NUL characters nor lone surrogates")


def made_by_tag(flow: str) -> str:
    """The tag of jobs that a flow created."""
    return f"made_by:{flow}"


def owner_tag(owner: UUID) -> str:
    """The tag of an owner's jobs."""
    return f"{OWNER_PREFIX}{owner}"


def read_owner(tags: Iterable[str]) -> UUID | None:
    """The owner of a job with these tags; None if it has none."""
    for tag in tags:
        if tag.startswith(OWNER_PREFIX):
            with suppress(ValueError):
                return UUID(tag.removeprefix(OWNER_PREFIX))
    return None


class JobParameters(NamedTuple):
    """The parameters of a run.

    Attributes:
        spec: The job, from the parameters with known names; None if it is invalid.
        problem: Why the flow rejects the parameters, one problem per line; None if it accepts them.
        options: The job's options; for an invalid job those that are valid.
        raw_config: The configuration, not validated.
    """

    spec: JobSpec | None
    problem: str | None
    options: JobOptions
    raw_config: dict[str, Any]


def read_spec(parameters: Mapping[str, Any] | None) -> JobParameters:
    """Parse a run's parameters, which may have been edited in Prefect's UI. Nothing else parses them."""
    try:
        text = json.dumps(parameters or {})
    except (TypeError, ValueError, RecursionError) as error:
        return JobParameters(None, f"the parameters are not valid JSON: {error}", JobOptions(), {})
    return _read_cached(text) if len(text) <= MAX_CACHED_CHARACTERS else _read(text)


def _read(text: str) -> JobParameters:
    values: Any = json.loads(text)
    if not isinstance(values, dict):
        return JobParameters(None, _check(values)[1], JobOptions(), {})
    config = values.get("config")
    raw_config = config if isinstance(config, dict) else {}
    spec, problem = _check(values)
    if spec is None:
        values = {name: value for name, value in values.items() if name in JobSpec.model_fields}
        spec, _ = _check(values)
    return JobParameters(spec, problem, spec or _read_options(values), raw_config)


def _check(values: Any) -> tuple[JobSpec | None, str | None]:
    try:
        return JobSpec.model_validate(values), None
    except ValidationError as error:
        return None, explain_validation_error(error, JobSpec)


def _read_options(values: dict[str, Any]) -> JobOptions:
    """Keep the valid options, so that the webhook is called even for a job with an invalid configuration."""
    given = {name: value for name, value in values.items() if name in JobOptions.model_fields}
    try:
        return JobOptions.model_validate(given)
    except ValidationError as error:
        wrong = {problem["loc"][0] for problem in error.errors() if problem["loc"]}
        return _read_options({name: value for name, value in given.items() if name not in wrong} if wrong else {})


# Lists read the same jobs again and again; validating them took a sixth of the time.
_read_cached = functools.lru_cache(maxsize=1024)(_read)


def metadata_tag(key: str, value: str) -> str:
    """The tag of one pair of a job's metadata."""
    return f"metadata:{key}={value}"
