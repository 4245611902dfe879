"""What the service is asked, as typed mappings. Its responses are the models of `tuneyard_wire`."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, TypedDict

from pydantic import BaseModel

from tuneyard_wire.jobs import Priority, TrainStatus

WebhookEvent = Literal["started", "checkpoint"]
Strategy = Literal["queue", "reject"]
Config = BaseModel | Mapping[str, Any]  # the fields of SFTConfig: a mapping, or the model of the full package


class TrainingFields(TypedDict, total=False):
    """The body of `POST /train`; the service's defaults stand for what is left out."""

    model_name: str
    dataset_version: str
    template: str
    cutoff_len: int
    batch_size: int
    gradient_accumulation_steps: int
    learning_rate: float | str
    num_epochs: float
    training_type: Literal["sft"]
    lora_name: str | None
    lora_version: int | str | None
    adapter_path: str | None
    save_name: str | None
    tracking_backend: Literal["mlflow", "wandb"]
    logging_backend: Literal["mlflow", "wandb"] | None
    webhook_url: str | None
    webhook_events: list[WebhookEvent] | None
    metadata: dict[str, str]
    priority: Priority
    dataset_split: str
    dataset_text_field: str | None
    max_samples: int | None
    excess_length_strategy: Literal["truncate", "drop", "error"]
    invalid_rows: Literal["skip", "error"]
    train_on_prompt: bool
    mask_history: bool
    validation_split: float
    use_lora: bool
    use_qlora: bool
    lora_r: int
    lora_alpha: int
    lora_dropout: float
    lora_target_modules: list[str] | str | None
    use_dora: bool
    use_rslora: bool
    loraplus_lr_ratio: float | None
    max_batch_tokens: int | None
    max_steps: int | None
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    neftune_noise_alpha: float | None
    optimizer_type: str | None
    scheduler_type: Literal["cosine", "linear", "constant"]
    mixed_precision: Literal["auto", "bf16", "fp16", "none"]
    gradient_checkpointing: bool | Literal["auto"]
    packing: bool
    num_devices: int
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


class AroundConfig(TypedDict, total=False):
    """What `POST /api/sft/train` takes beside `config`."""

    config_id: str | None
    adapter_name: str | None
    tracking_backend: str | None
    webhook_url: str | None
    webhook_events: Sequence[WebhookEvent] | None
    metadata: Mapping[str, str] | None
    priority: Priority | None


class JobFilters(TypedDict, total=False):
    """What `GET /train` filters by. Times are ISO 8601 or datetimes; metadata is matched pair by pair."""

    status: TrainStatus
    model: str
    adapter: str
    dataset: str
    created_after: datetime | str
    created_before: datetime | str
    metadata: dict[str, str]
    id_prefix: str
