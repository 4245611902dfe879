"""The Training API's words for a job, and their translation to and from a `JobSpec`."""

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, create_model, model_validator

from api.request_fields import (
    LearningRate,
    MetadataPairs,
    ModelId,
    RequestFields,
    TemplateName,
    WebhookUrl,
    request_field,
    with_rules,
)
from jobs.spec import EVENTS_RULE, AdapterName, JobSpec, TrackingBackend, WebhookEvents
from sft.chat.templates import check_template_name
from sft.config import Amount, Count, SFTConfig
from sft.errors import TuneyardError
from sft.lengths import Name, PathText
from sft.rules import CONFIG_RULES, GIVEN, NULL, Rule
from tuneyard_wire.dataset_reference import DatasetReference
from tuneyard_wire.jobs import Priority

# The Training API's name of a field, where it differs from SFTConfig's.
RENAMED = {
    "model_name": "base_model",
    "template": "template_name",
    "cutoff_len": "max_seq_length",
}
# Fields with the Training API's own meaning or default; every other field of SFTConfig is taken as it is.
_SHARED = ("batch_size", "gradient_accumulation_steps", "learning_rate", "num_epochs")
_OWN = {*RENAMED.values(), *_SHARED, "dataset_name", "dataset_format", "adapter_path"}
ENGINE_FIELDS = [name for name in SFTConfig.model_fields if name not in _OWN]
_MODELS_SCHEME = "models:/"

START_RULE = Rule(
    {"lora_version": NULL},
    {"lora_version": GIVEN, "lora_name": GIVEN, "adapter_path": NULL, "use_lora": True},
    {
        "lora_name": "lora_version needs lora_name; name the adapter to start from",
        "adapter_path": "lora_version and adapter_path both name an adapter to start from; give one",
        "use_lora": "lora_version needs use_lora; set use_lora to true",
    },
)


class TrainingFields(RequestFields):
    """A training job as `POST /train` takes it. LoRA and engine fields are those of the SFT configuration."""

    model_config = with_rules(*CONFIG_RULES, START_RULE, EVENTS_RULE)

    model_name: ModelId = Field("Qwen/Qwen2.5-1.5B-Instruct", description="Base model id.")
    dataset_version: PathText = Field("v1.0", min_length=1, description="`[name@]revision` in the dataset registry.")
    template: TemplateName = Field("qwen", description="Chat template; `auto` is the tokenizer's own.")
    cutoff_len: Count = Field(2048, gt=0, description="Longest row in tokens.")
    batch_size: Count = Field(1, gt=0, description="Rows a device sees at once.")
    gradient_accumulation_steps: Count = Field(8, gt=0, description="Batches summed up before an optimizer step.")
    learning_rate: LearningRate = Field(2.0e-5, gt=0, description="Peak learning rate; a number or a string.")
    num_epochs: Amount = Field(3.0, gt=0, description="Passes over the data.")
    training_type: Literal["sft"] = Field("sft", description="Supervised fine-tuning.")
    lora_name: AdapterName | None = Field(None, description="The adapter's name in the registry.")
    lora_version: Count | Name | None = Field(None, description="Start from this version of lora_name.")
    adapter_path: PathText | None = Field(None, description="Start from the adapter in this folder.")
    save_name: AdapterName | None = Field(None, description="Register under this name instead of lora_name.")
    tracking_backend: TrackingBackend = Field("mlflow", description="Where per-step metrics are shown.")
    logging_backend: TrackingBackend | None = Field(None, description="Another name of tracking_backend, which wins.")
    webhook_url: WebhookUrl | None = Field(None, description="Called once the job has ended; http or https.")
    webhook_events: WebhookEvents | None = Field(
        None, description="What it is called for beside the end: `started`, and `checkpoint` for each that is saved."
    )
    metadata: MetadataPairs | None = Field(
        None, description="Up to 16 pairs of text, kept with the job and filtered by."
    )
    priority: Priority = Field("normal", description="Jobs of a higher priority start first.")

    @model_validator(mode="before")
    @classmethod
    def _check_flat(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("config"), dict):
            names = [*RENAMED.items(), ("dataset_version", "dataset_name")]
            renamed = [f"{ours} is {theirs} here" for theirs, ours in names if ours in values["config"]]
            raise ValueError(
                "config: the Training API takes the fields themselves, without config around them"
                f"{''.join(f'; {hint}' for hint in renamed)}. The SFT API at /api/sft/train takes a config"
            )
        return values

    @model_validator(mode="after")
    def _check_as_job(self) -> Self:
        START_RULE.check(self)
        try:
            self.to_spec(default_dataset="any")
        except TuneyardError as error:
            raise ValueError(str(error)) from error
        return self

    def to_spec(self, default_dataset: str) -> JobSpec:
        """The job this request asks for. Raises InvalidConfig."""
        check_template_name(self.template)
        values = {name: getattr(self, name) for name in (*ENGINE_FIELDS, *_SHARED)}
        values |= {ours: getattr(self, theirs) for theirs, ours in RENAMED.items()}
        dataset = DatasetReference.parse_version(self.dataset_version, default_dataset)
        has_start = self.lora_version is not None
        start = f"{_MODELS_SCHEME}{self.lora_name}/{self.lora_version}" if has_start else self.adapter_path
        return JobSpec.build(
            config=SFTConfig.from_dict(
                {**values, "dataset_name": str(dataset), "dataset_format": "auto", "adapter_path": start}
            ),
            adapter_name=self.save_name or self.lora_name,
            tracking_backend=self._read_backend(),
            webhook_url=self.webhook_url,
            webhook_events=self.webhook_events,
            metadata=self.metadata,
        )

    def _read_backend(self) -> TrackingBackend:
        has_own = "tracking_backend" in self.model_fields_set
        return self.tracking_backend if has_own else self.logging_backend or self.tracking_backend


if TYPE_CHECKING:
    TrainingRequest = TrainingFields
else:
    TrainingRequest = create_model(
        "TrainingRequest",
        __base__=TrainingFields,
        __doc__=TrainingFields.__doc__,
        **{name: request_field(name) for name in ENGINE_FIELDS},
    )


def field_names(request: TrainingFields) -> dict[str, str]:
    """What the fields of SFTConfig are called here, where they have another name."""
    names = {ours: theirs for theirs, ours in RENAMED.items()} | {"dataset_name": "dataset_version"}
    return names | {"adapter_path": "lora_version"} if request.lora_version is not None else names


def config_view(spec: JobSpec, default_dataset: str) -> dict[str, Any]:
    """The effective values of a job in the Training API's words."""
    config = spec.config.to_dict()
    view = {theirs: config.pop(ours) for theirs, ours in RENAMED.items()}
    del config["dataset_name"]
    start = config.pop("adapter_path")
    config.pop("dataset_format")
    view["dataset_version"] = spec.dataset.to_version(default_dataset)
    view |= {"training_type": "sft", "lora_name": spec.adapter_name, "lora_version": None, "save_name": None}
    view["adapter_path"] = start
    if start and start.startswith(_MODELS_SCHEME):
        name, _, version = start.removeprefix(_MODELS_SCHEME).rpartition("/")
        view |= {"lora_name": name, "lora_version": version, "save_name": spec.adapter_name, "adapter_path": None}
    view |= config | {"tracking_backend": spec.tracking_backend, "webhook_url": spec.webhook_url}
    return view | {"webhook_events": [*spec.webhook_events] if spec.webhook_events else None}
