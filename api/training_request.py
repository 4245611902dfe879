"""The Training API's request, and its translation to and from a `JobSpec`."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, create_model, model_validator

from api.request_fields import LearningRate, ModelId, RequestFields, TemplateName, request_field, with_rules
from jobs.spec import OPTION_RULES, AdapterName, JobOptions, JobSpec, SubmissionOptions, check_storable
from sft.chat.templates import check_template_name
from sft.config import Amount, Count, Name, PathText, SFTConfig
from sft.errors import InvalidConfig, TuneyardError
from sft.explanations import Matching
from sft.rules import CONFIG_RULES, GIVEN, NULL, Rule
from sft.sources import HIGHER_WEIGHT, DatasetSource, Sources, check_different
from tuneyard_wire.dataset_reference import DatasetReference
from tuneyard_wire.fields import TRAINING_NAMES, TrackingBackend

# Fields of SFTConfig that are derived from other fields of a request, or set by the service.
_DERIVED_FIELDS = ("dataset_name", "dataset_format", "adapter_path")
_ENGINE_FIELDS = [name for name in SFTConfig.model_fields if name not in _DERIVED_FIELDS]
# Options that are not in a job's `config`, but elsewhere in its description or under another name.
_SHOWN_ELSEWHERE = ("adapter_name", "metadata")
_SHOWN_OPTIONS = [name for name in JobOptions.model_fields if name not in _SHOWN_ELSEWHERE]
_MODELS_SCHEME = "models:/"

START_RULE = Rule(
    {"lora_version": NULL},
    {"lora_version": GIVEN, "adapter_name": GIVEN, "adapter_path": NULL, "use_lora": True},
    {
        "adapter_name": "lora_version needs lora_name; name the adapter to start from",
        "adapter_path": "lora_version and adapter_path both name an adapter to start from; give one",
        "use_lora": "lora_version needs use_lora; set use_lora to true",
    },
)


class OwnFields(SubmissionOptions, RequestFields):
    """The body of `POST /train`. LoRA and engine fields are those of the SFT configuration."""

    model_config = ConfigDict(
        **with_rules(*CONFIG_RULES, START_RULE, *OPTION_RULES, names=TRAINING_NAMES),
        alias_generator=lambda name: TRAINING_NAMES.get(name, name),
    )

    base_model: ModelId = Field("Qwen/Qwen2.5-1.5B-Instruct", description="Base model id.")
    dataset_version: Annotated[PathText, Field(min_length=1), Matching(r"\S", "must not be blank")] | Sources = Field(
        "v1.0",
        description="`[name@]revision` in the dataset registry. Or a list of these, each a name or an object with "
        "`name` and `weight`: how often an epoch takes its rows.",
    )
    template_name: TemplateName = Field("qwen", description="Chat template; `auto` is the tokenizer's own.")
    max_seq_length: Count = Field(2048, gt=0, description="Maximum row length in tokens.")
    batch_size: Count = Field(1, gt=0, description="Rows per device and batch.")
    gradient_accumulation_steps: Count = Field(8, gt=0, description="Batches per optimizer step.")
    learning_rate: LearningRate = Field(2.0e-5, gt=0, description="Peak learning rate; a number or a string.")
    num_epochs: Amount = Field(3.0, gt=0, description="Passes over the data.")
    training_type: Literal["sft"] = Field("sft", description="Supervised fine-tuning.")
    lora_version: Count | Name | None = Field(None, description="Start from this version of lora_name.")
    adapter_path: PathText | None = Field(None, description="Start from the adapter in this folder.")
    save_name: AdapterName | None = Field(None, description="Register under this name instead of lora_name.")
    logging_backend: TrackingBackend | None = Field(
        None, description="Alias of tracking_backend, which takes precedence."
    )

    @model_validator(mode="before")
    @classmethod
    def _check_flat(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("config"), dict):
            renamed = [
                f"{ours} is {theirs} here" for ours, theirs in TRAINING_NAMES.items() if ours in values["config"]
            ]
            raise ValueError(
                "config: the Training API takes the fields at the top level, without config"
                f"{''.join(f'; {hint}' for hint in renamed)}. The SFT API at /api/sft/train takes a config"
            )
        return values

    @model_validator(mode="after")
    def _check_as_job(self) -> Self:
        START_RULE.check(self)
        check_storable(self.model_dump(by_alias=True))  # the job's check would name its own fields
        try:
            self.to_spec(default_dataset="any")
        except TuneyardError as error:
            raise ValueError(str(error)) from error
        return self

    def to_spec(self, default_dataset: str) -> JobSpec:
        """Build the spec of the requested job. Raises InvalidConfig or TemplateNotFound."""
        check_template_name(self.template_name)
        has_start = self.lora_version is not None
        start = f"{_MODELS_SCHEME}{self.adapter_name}/{self.lora_version}" if has_start else self.adapter_path
        config = {name: getattr(self, name) for name in _ENGINE_FIELDS} | {
            "dataset_name": self._read_dataset(default_dataset),
            "dataset_format": "auto",
            "adapter_path": start,
        }
        options = {name: getattr(self, name) for name in JobOptions.model_fields} | {
            "adapter_name": self.save_name or self.adapter_name,
            "tracking_backend": self._read_backend(),
        }
        return JobSpec.build(config=SFTConfig.from_dict(config), **options)

    def _read_dataset(self, default_dataset: str) -> str | tuple[DatasetSource, ...]:
        """`dataset_version` as a `dataset_name`."""

        def complete(version: str) -> str:
            return str(DatasetReference.parse_version(version, default_dataset))

        given = self.dataset_version
        if isinstance(given, str):
            return complete(given)
        names = [complete(one.name) for one in given]
        try:
            check_different(names, HIGHER_WEIGHT)
        except ValueError as error:
            raise InvalidConfig(f"dataset_version: {error}") from error
        return tuple(DatasetSource(name=name, weight=one.weight) for name, one in zip(names, given, strict=True))

    def _read_backend(self) -> TrackingBackend:
        has_own = "tracking_backend" in self.model_fields_set
        return self.tracking_backend if has_own else self.logging_backend or self.tracking_backend


if TYPE_CHECKING:
    TrainingRequest = OwnFields
else:
    TrainingRequest = create_model(
        "TrainingRequest",
        __base__=OwnFields,
        __doc__=OwnFields.__doc__,
        **{name: request_field(name) for name in _ENGINE_FIELDS if name not in OwnFields.model_fields},
    )


def field_names(request: OwnFields) -> dict[str, str]:
    """The Training API's names of SFTConfig's fields, where they differ."""
    return TRAINING_NAMES | ({"adapter_path": "lora_version"} if request.lora_version is not None else {})


def config_view(spec: JobSpec, default_dataset: str) -> dict[str, Any]:
    """The effective values of a job, with the Training API's field names."""
    config = spec.config.to_dict()
    start = config.pop("adapter_path")
    del config["dataset_name"], config["dataset_format"]
    view = {theirs: config.pop(ours) for ours, theirs in TRAINING_NAMES.items() if ours in config}
    view["dataset_version"] = _show_dataset(spec, default_dataset)
    view |= {"training_type": "sft", "lora_name": spec.adapter_name, "lora_version": None, "save_name": None}
    view["adapter_path"] = start
    if start and start.startswith(_MODELS_SCHEME):
        name, _, version = start.removeprefix(_MODELS_SCHEME).rpartition("/")
        view |= {"lora_name": name, "lora_version": version, "save_name": spec.adapter_name, "adapter_path": None}
    view |= config
    for name in _SHOWN_OPTIONS:
        value = getattr(spec, name)
        view[name] = [*value] if isinstance(value, tuple) else value
    return view


def _show_dataset(spec: JobSpec, default_dataset: str) -> str | list[dict[str, Any]]:
    versions = [dataset.to_version(default_dataset) for dataset in spec.datasets]
    if isinstance(spec.config.dataset_name, str):
        return versions[0]
    weights = (source.weight for source in spec.config.sources)
    return [{"name": version, "weight": weight} for version, weight in zip(versions, weights, strict=True)]
