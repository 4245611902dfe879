"""`SFTConfig`: the frozen, serializable configuration of a training run, with all its defaults."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sft.errors import InvalidConfig
from sft.explanations import explain_validation_error
from sft.rules import CONFIG_RULES
from sft.sources import (
    HIGHER_WEIGHT,
    DatasetSource,
    Reference,
    References,
    Sources,
    check_different,
    settle_split,
)

# Limits of texts and lists: more than any use needs, less than other parts refuse. Prefect takes parameters of up to
# 512 KiB in all, a file system paths of up to 4096 bytes.
NAME_CHARACTERS = 250
PATH_CHARACTERS = 4096
LIST_ENTRIES = 4096
JOB_BYTES = 256 * 1024  # of a job, or of a saved configuration, as JSON

Name = Annotated[str, Field(max_length=NAME_CHARACTERS)]
PathText = Annotated[str, Field(max_length=PATH_CHARACTERS)]
ModuleNames = Annotated[
    tuple[Annotated[str, Field(max_length=NAME_CHARACTERS)], ...], Field(max_length=LIST_ENTRIES)
]  # names, ends of names and patterns
DatasetFormat = Literal["alpaca", "chat", "completion", "auto"]
# Larger numbers make no sense and break other parts: Prefect can't return a list that has a number beyond 64 bits,
# and PostgreSQL returns 1e30 to it as an integer.
Count = Annotated[int, Field(le=2**31 - 1)]
Amount = Annotated[float, Field(le=1e9)]


class SFTConfig(BaseModel):
    """The configuration of one supervised fine-tuning job.

    Raises:
        InvalidConfig: (a `ValueError`) from `from_dict` and `from_yaml`, naming field, value and remedy.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_default=True,
        json_schema_extra=lambda schema: _number_fields(schema),
    )

    base_model: PathText = Field(min_length=1, description="Model id or path below the model root.")
    dataset_name: Reference | Sources = Field(
        description="`name@revision` in the dataset registry, a file below the data roots, or a Hub dataset id. Or a "
        "list of these, each a name or an object with `name` and `weight`: how often an epoch takes its rows.",
    )
    validation_dataset: Reference | References | None = Field(
        None, description="Dataset, or list of datasets, to evaluate on; no training rows are held out then."
    )
    dataset_format: DatasetFormat = Field(description="How a row is read; `auto` decides by its columns.")
    dataset_split: Name = Field("train", description="Split to train on.")
    dataset_text_field: Name | None = Field(None, description="Column with the text of a completion dataset.")
    max_samples: Count | None = Field(None, gt=0, description="Train on at most this many rows (seeded choice).")
    validation_split: float = Field(0.1, ge=0, lt=1, description="Share of rows held out when the data has no split.")
    max_seq_length: Count = Field(2048, gt=0, description="Maximum row length in tokens.")
    excess_length_strategy: Literal["truncate", "drop", "error"] = Field(
        "truncate", description="Truncate (and count), drop or reject rows longer than max_seq_length."
    )
    invalid_rows: Literal["skip", "error"] = Field("skip", description="Skip and report invalid rows, or fail the job.")
    template_name: Name = Field("auto", min_length=1, description="Chat template; `auto` is the tokenizer's own.")
    train_on_prompt: bool = Field(False, description="Train on prompts too, not only on assistant turns.")
    mask_history: bool = Field(False, description="Train only on the last assistant turn of a conversation.")

    use_lora: bool = Field(True, description="Train a LoRA adapter; false trains every weight.")
    use_qlora: bool = Field(False, description="Load the base model in 4 bits (CUDA only).")
    lora_r: Count = Field(8, gt=0, description="LoRA rank.")
    lora_alpha: Count = Field(16, gt=0, description="LoRA scale is lora_alpha / lora_r.")
    lora_dropout: float = Field(0.05, ge=0, lt=1, description="Dropout before the adapter.")
    use_dora: bool = Field(False, description="Weight-decomposed LoRA (DoRA).")
    use_rslora: bool = Field(False, description="Rank-stabilized scale: lora_alpha / sqrt(lora_r).")
    loraplus_lr_ratio: Amount | None = Field(None, ge=1, description="LoRA+: learning rate of B over that of A.")
    lora_target_modules: ModuleNames | None = Field(None, description="Modules to adapt; all linear if unset.")
    adapter_path: PathText | None = Field(
        None, description="Start from this adapter: a folder or `models:/name/version`."
    )

    batch_size: Count = Field(4, gt=0, description="Rows per device and batch.")
    max_batch_tokens: Count | None = Field(
        None, gt=0, description="Fill batches up to this many tokens instead of counting batch_size rows."
    )
    gradient_accumulation_steps: Count = Field(4, gt=0, description="Batches per optimizer step.")
    learning_rate: Amount = Field(2e-4, gt=0, description="Peak learning rate.")
    num_epochs: Amount = Field(3.0, gt=0, description="Passes over the data.")
    max_steps: Count | None = Field(None, gt=0, description="Stop after this many optimizer steps; overrides epochs.")
    warmup_ratio: float = Field(0.03, ge=0, lt=1, description="Share of the steps that warm up.")
    weight_decay: Amount = Field(0.001, ge=0, description="AdamW weight decay.")
    max_grad_norm: Amount = Field(0.3, ge=0, description="Gradient clipping; 0 turns it off.")
    neftune_noise_alpha: Amount | None = Field(None, gt=0, description="NEFTune: noise on the input embeddings.")
    optimizer_type: Name | None = Field(
        None, description="A transformers optimizer name; best for the device if unset."
    )
    scheduler_type: Literal["cosine", "linear", "constant"] = Field("cosine", description="Learning rate schedule.")
    mixed_precision: Literal["auto", "bf16", "fp16", "none"] = Field("auto", description="Compute dtype.")
    gradient_checkpointing: bool | Literal["auto"] = Field("auto", description="Recompute activations to save memory.")
    attn_implementation: Literal["auto", "varlen", "sdpa", "eager", "flash_attention_2", "flash_attention_3"] = Field(
        "auto", description="Attention kernels; `auto` takes the fastest that gives this model the right loss."
    )
    packing: bool = Field(False, description="Pack several rows into one sequence of max_seq_length.")
    num_devices: Count = Field(1, gt=0, description="GPUs for this job.")
    shard_model: bool = Field(
        False, description="Split the base model's layers over num_devices, for models larger than a GPU (FSDP2, LoRA)."
    )
    device_map: Name | None = Field(None, description="Where weights go; the job's own GPU if unset.")

    logging_steps: Count = Field(10, gt=0, description="Steps between log lines.")
    save_steps: Count = Field(100, gt=0, description="Steps between checkpoints.")
    eval_steps: Count | None = Field(None, gt=0, description="Steps between evaluations; only at the end if unset.")
    early_stopping_patience: Count | None = Field(
        None, gt=0, description="Stop after this many evaluations without a better eval_loss, and keep the best."
    )
    save_total_limit: Count = Field(3, gt=0, description="Checkpoints kept.")
    output_dir: PathText | None = Field(
        None, description="Where results go, below the output root; the job's id if unset."
    )
    checkpoint_dir: PathText | None = Field(
        None, description="Where checkpoints go; `checkpoints` in output_dir if unset."
    )
    save_merged_model: bool = Field(False, description="Also save base and adapter merged.")

    run_name: Name | None = Field(None, description="Name of the tracking run.")
    wandb_project: Name | None = Field(None, description="Weights & Biases project.")
    wandb_entity: Name | None = Field(None, description="Weights & Biases entity.")
    wandb_run_name: Name | None = Field(None, description="Weights & Biases run name; run_name if unset.")
    seed: int = Field(42, ge=0, lt=2**32, description="Seed of every random choice.")

    @model_validator(mode="before")
    @classmethod
    def _settle_split(cls, values: Any) -> Any:
        return settle_split(values)

    @field_validator("base_model", "dataset_name", "template_name", "validation_dataset")
    @classmethod
    def _strip(cls, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(cls._strip, value))
        if not isinstance(value, str):
            return value
        if not value.strip():
            raise ValueError("must not be blank")
        return value.strip()

    @field_validator("dataset_name", "validation_dataset")
    @classmethod
    def _check_different(cls, value: Any) -> Any:
        if isinstance(value, tuple):
            names = [one.name if isinstance(one, DatasetSource) else one for one in value]
            check_different(names, HIGHER_WEIGHT if isinstance(value[0], DatasetSource) else "give it once")
        return value

    @field_validator("lora_target_modules", mode="before")
    @classmethod
    def _read_target_modules(cls, value: Any) -> Any:
        """Read `all` (or `all-linear`) as every linear layer, and a single name as a list of one."""
        if value in ("all", "all-linear", ["all"], ["all-linear"]):
            return None
        names = [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        if names == []:
            raise ValueError("must name a layer, or be left out for all linear ones")
        return names

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        for rule in CONFIG_RULES:
            rule.check(self)
        return self

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build from plain values. Raises InvalidConfig with every problem, one a line."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InvalidConfig(explain_validation_error(error, cls)) from error

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Build from a YAML file of the same keys."""
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise InvalidConfig(f"{path} is not valid YAML: {error}") from error
        if not isinstance(values, dict):
            raise InvalidConfig(f"{path} must hold a mapping of fields, got {type(values).__name__}")
        return cls.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values of every field, defaults included."""
        return self.model_dump(mode="json")

    def to_yaml(self, path: str | Path) -> None:
        """Write every field, defaults included."""
        Path(path).write_text(yaml.safe_dump(self.to_dict(), sort_keys=False), encoding="utf-8")

    @property
    def sources(self) -> tuple[DatasetSource, ...]:
        """The datasets to train on, with their weights; a single one has weight 1."""
        name = self.dataset_name
        return name if isinstance(name, tuple) else (DatasetSource(name=name),)

    def name_datasets(self) -> list[tuple[str, str]]:
        """The reference of each dataset with the place where it is given: `dataset_name`, `dataset_name.0` …"""
        given = {"dataset_name": self.dataset_name, "validation_dataset": self.validation_dataset}
        named = []
        for field, value in given.items():
            if isinstance(value, tuple):
                texts = [one if isinstance(one, str) else one.name for one in value]
                named += [(f"{field}.{place}", text) for place, text in enumerate(texts)]
            elif value is not None:
                named.append((field, value))
        return named

    @property
    def is_mixed(self) -> bool:
        """Whether there are several datasets to train on, or others to evaluate on."""
        return isinstance(self.dataset_name, tuple) or self.validation_dataset is not None

    @property
    def dataset_names(self) -> str:
        """The datasets to train on, for messages."""
        return ", ".join(source.name for source in self.sources)

    def get_effective_batch_size(self) -> int:
        """Rows an optimizer step learns from: batch_size x gradient_accumulation_steps x num_devices."""
        return self.batch_size * self.gradient_accumulation_steps * self.num_devices


def count_warmup_steps(steps: int, warmup_ratio: float) -> int:
    """How many of a run's optimizer steps warm up: rounded down, and never all of them.

    The first warmup step has a learning rate of 0. Rounded up, as transformers does it, a run of a single step would
    learn nothing.
    """
    return min(int(steps * warmup_ratio + 1e-6), steps - 1)


def _number_fields(schema: dict[str, Any]) -> None:
    """Number the fields by `position`, which orders Prefect's form: PostgreSQL's JSON does not keep their order."""
    for position, field in enumerate(schema["properties"].values()):
        field["position"] = position
