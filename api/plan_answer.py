"""The shape of a plan, for the OpenAPI document."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from api.rows_answer import SplitRows


class PlanPart(BaseModel):
    """Base of a plan's parts; later versions may add keys."""

    model_config = ConfigDict(extra="allow")


class PlannedDataset(PlanPart):
    """Exactly which rows the plan is of."""

    name: str
    revision: str | None
    commit: str | None
    md5: str
    rows: int
    held_out_file: str | None = Field(None, description="The file of the held-out rows, if they have one.")
    source: Literal["dvc", "file", "hub"]


class PlannedDevice(PlanPart):
    """The device the plan is made for: the one of the machine that made it."""

    name: str
    kind: Literal["cpu", "cuda"]
    dtype: str
    memory_bytes: int
    free_memory_bytes: int
    gflops: float = Field(description="Measured on a matrix product of this dtype.")


class InvalidRow(PlanPart):
    """A row that can't be read."""

    row: int
    reason: str


class RowNotes(PlanPart):
    """Row numbers in the data file, from 1; the first 100 of each kind."""

    invalid: list[InvalidRow]
    dropped: list[int] = Field(description="Nothing to learn in them.")
    too_long: list[int] = Field(description="Left out by excess_length_strategy drop.")
    truncated: list[int]


class PlannedRows(SplitRows):
    """What becomes of a split's rows."""

    notes: RowNotes


class PlannedSplits(PlanPart):
    """The rows that are learned from, and those held out."""

    train: PlannedRows
    eval: PlannedRows | None


class HistogramBin(BaseModel):
    """Rows of `from` tokens and more, but fewer than `to`."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    start: int = Field(alias="from")
    to: int
    rows: int


class PlannedTokens(PlanPart):
    """How long the rows are."""

    min: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: int
    histogram: list[HistogramBin]
    supervised_share: float


class PlannedBatches(PlanPart):
    """How the rows go into batches. Tokens of a batch are a device's."""

    rows_per_step: int
    batches_per_epoch: int
    mean_tokens: float
    max_tokens: int
    tokens_per_epoch: int
    padded_tokens_per_epoch: int = Field(description="If each batch of batch_size were padded to its longest row.")
    padding_saved: float = Field(description="Share of these that rows laid end to end don't need.")
    packed_sequences: int | None


class LeftOutPart(PlanPart):
    """A part of the model that stays as it is."""

    what: str
    parameters: int
    reason: str


class PlannedModel(PlanPart):
    """What is trained of the model."""

    parameters: int
    trainable_parameters: int
    share: float = Field(description="Of the weights of the model with its adapter that are trained.")
    adapted: dict[str, int] = Field(description="Layers that get an adapter, by name; empty without LoRA.")
    left_out: list[LeftOutPart] = Field(description="What gets no adapter, and why.")
    layout: str | None
    gradient_checkpointing: bool


class PlannedMemory(PlanPart):
    """Memory of the device."""

    peak_bytes: int
    free_bytes: int
    fits: bool
    largest_batch_size: int = Field(description="That fits even if the longest rows come together.")
    largest_batch_tokens: int
    parts: dict[str, int]


class PlannedDisk(PlanPart):
    """What the job writes."""

    needed_bytes: int
    free_bytes: int
    fits: bool
    checkpoint_bytes: int
    checkpoints_kept: int
    parts: dict[str, int]


class PlannedTime(PlanPart):
    """How long the job runs once it has a free device."""

    basis: Literal["past_runs", "probe", "matrix_product"] = Field(
        description="Completed jobs of the same work, a probe of a few layers, or the device's matrix product alone."
    )
    past_runs: int
    train_seconds: float
    evaluate_seconds: float
    startup_seconds: float
    finish_seconds: float
    total_seconds: float
    tokens_per_second: float
    seconds_per_step: float


class SamplePart(PlanPart):
    """Text that is learned, or only read."""

    text: str
    supervised: bool


class Sample(PlanPart):
    """A row as the model reads it."""

    row: int
    tokens: int
    supervised_tokens: int
    parts: list[SamplePart]
    is_cut: bool


class PlanWarning(PlanPart):
    """Something to know before the job is started."""

    code: str
    message: str


class Plan(PlanPart):
    """What a job would take."""

    dataset: PlannedDataset
    device: PlannedDevice
    rows: PlannedSplits
    ignored: dict[str, int] = Field(description="Fields of the rows that are not followed, by the number of rows.")
    tokens: PlannedTokens
    batches: PlannedBatches
    steps: int = Field(description="Optimizer steps.")
    epochs: float
    model: PlannedModel
    memory: PlannedMemory
    disk: PlannedDisk
    time: PlannedTime
    samples: list[Sample]
    warnings: list[PlanWarning]
    was_tokenized_before: bool
