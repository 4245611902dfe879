"""Field names and types of a job in both APIs, and of the filters of job lists.

Types alone, without pydantic: the command line builds its options from them and has to start fast. The models that
validate the values are `sft.config.SFTConfig` and `jobs.spec.JobOptions`; tests compare the two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NotRequired, Required, TypedDict

Priority = Literal["high", "normal", "low"]
Strategy = Literal["queue", "reject"]
TrackingBackend = Literal["mlflow", "wandb"]
WebhookEvent = Literal["started", "checkpoint"]
TrainStatus = Literal["created", "queued", "running", "completed", "failed", "cancelled"]  # in the Training API

# The Training API's names of fields that differ from those of SFTConfig and JobOptions, which the SFT API uses.
TRAINING_NAMES = {
    "base_model": "model_name",
    "dataset_name": "dataset_version",  # which may be a revision of the default dataset
    "template_name": "template",
    "max_seq_length": "cutoff_len",
    "adapter_name": "lora_name",
}

DATASET_HELP = (
    "A file, which is added to the service; NAME@VERSION; OWNER/NAME on the Hub; or a REVISION of --config's dataset, "
    "else of the default one. For several: --set 'dataset_name=[...]'."
)


@dataclass(frozen=True)
class Flag:
    """Marks a field that has its own command-line option; other fields are given with `--set`.

    Attributes:
        name: The option, if it differs from the field's name.
    """

    help: str
    name: str | None = None


class WeightedDataset(TypedDict, total=False):
    """A dataset in a list: an epoch takes weight (1 if unset) times its training rows."""

    name: Required[str]
    weight: NotRequired[float]


class OptionFields(TypedDict, total=False):
    """Options of a job with the same names in both APIs."""

    tracking_backend: Annotated[TrackingBackend, Flag("Where metrics are shown.", "--tracking")]
    webhook_url: Annotated[str | None, Flag("URL to call when the job has ended.", "--webhook")]
    webhook_events: Annotated[Sequence[WebhookEvent] | None, Flag("Further event to send.", "--webhook-event")]
    priority: Annotated[Priority, Flag("Priority in the queue.")]
    metadata: Annotated[Mapping[str, str] | None, Flag("A label.")]


class SftOptions(OptionFields, total=False):
    """The fields of `POST /api/sft/train` other than `config`."""

    config_id: str | None
    adapter_name: str | None


class TrainingFields(OptionFields, total=False):
    """The fields of `POST /train`; the service has defaults for missing ones."""

    model_name: Annotated[str, Flag("Base model.", "--model")]
    dataset_version: Annotated[str | Sequence[str | WeightedDataset], Flag(DATASET_HELP, "--dataset")]
    lora_name: Annotated[str | None, Flag("The adapter's name in the registry.", "--name")]
    template: Annotated[str, Flag("Chat template.")]
    num_epochs: Annotated[float, Flag("Passes over the data.", "--epochs")]
    max_steps: Annotated[int | None, Flag("Stop after this many optimizer steps.")]
    max_samples: Annotated[int | None, Flag("Train on at most this many rows.")]
    batch_size: Annotated[int, Flag("Rows per device and step.")]
    learning_rate: Annotated[float | str, Flag("Peak learning rate.")]
    cutoff_len: Annotated[int, Flag("Maximum row length in tokens.")]
    lora_r: Annotated[int, Flag("LoRA rank.")]
    gradient_accumulation_steps: int
    training_type: Literal["sft"]
    lora_version: int | str | None
    adapter_path: str | None
    save_name: str | None
    logging_backend: TrackingBackend | None
    validation_dataset: str | Sequence[str] | None
    dataset_split: str
    dataset_text_field: str | None
    excess_length_strategy: Literal["truncate", "drop", "error"]
    invalid_rows: Literal["skip", "error"]
    train_on_prompt: bool
    mask_history: bool
    validation_split: float
    use_lora: bool
    use_qlora: bool
    lora_alpha: int
    lora_dropout: float
    lora_target_modules: list[str] | str | None
    use_dora: bool
    use_rslora: bool
    loraplus_lr_ratio: float | None
    max_batch_tokens: int | None
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    neftune_noise_alpha: float | None
    optimizer_type: str | None
    scheduler_type: Literal["cosine", "linear", "constant"]
    mixed_precision: Literal["auto", "bf16", "fp16", "none"]
    gradient_checkpointing: bool | Literal["auto"]
    attn_implementation: Literal["auto", "varlen", "sdpa", "eager", "flash_attention_2", "flash_attention_3"]
    packing: bool
    num_devices: int
    shard_model: bool
    device_map: str | None
    logging_steps: int
    save_steps: int
    eval_steps: int | None
    early_stopping_patience: int | None
    save_total_limit: int
    output_dir: str | None
    checkpoint_dir: str | None
    save_merged_model: bool
    run_name: str | None
    wandb_project: str | None
    wandb_entity: str | None
    wandb_run_name: str | None
    seed: int
