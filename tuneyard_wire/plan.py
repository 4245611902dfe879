"""The response to a plan request: an estimate of a job."""

from typing import Annotated

from pydantic import Field

from tuneyard_wire.plan_example import EXAMPLE
from tuneyard_wire.response import Response, one_of, with_example
from tuneyard_wire.rows import PartRows, SplitRows


class PlannedDataset(Response):
    """The exact dataset of the plan; of several, a `mix` without revision and commit."""

    name: str
    revision: str | None
    commit: str | None
    md5: str
    rows: int
    held_out_file: str | None = Field(None, description="The file with the held-out rows, if there is one.")
    source: Annotated[str, one_of("dvc", "file", "hub", "mix")]


class PlannedDevice(Response):
    """The device the plan is for: the one that was named, or that of the machine that makes it."""

    name: str
    kind: Annotated[str, one_of("cpu", "cuda")]
    dtype: str
    memory_bytes: int
    free_memory_bytes: int
    gflops: float = Field(description="Of a matrix product of this dtype: measured, or by its data sheet.")
    is_here: bool = Field(True, description="Whether it is the device of the machine that makes the plan.")


class InvalidRow(Response):
    """A row that is invalid."""

    row: int
    reason: str


class RowNotes(Response):
    """Row numbers in the data file, counted from 1; the first 100 of each kind."""

    invalid: list[InvalidRow]
    dropped: list[int] = Field(description="Rows without supervised tokens.")
    too_long: list[int] = Field(description="Dropped by excess_length_strategy drop.")
    truncated: list[int]


class PlannedRows(SplitRows):
    """A split's rows: how many are used, and which ones are not."""

    notes: RowNotes


class PlannedSample(Response):
    """How many of a large dataset's rows the plan has read."""

    rows: int
    of: int = Field(description="Number of rows in the training file.")
    eval_rows: int = Field(0, description="Rows read of the held-out file; 0 without one.")
    eval_of: int = Field(0, description="Number of rows in the held-out file.")


class PlannedSplits(Response):
    """The training rows and the held-out rows."""

    train: PlannedRows
    eval: PlannedRows | None


class HistogramBin(Response):
    """Number of rows with at least `from` and fewer than `to` tokens."""

    start: int = Field(alias="from")
    to: int
    rows: int


class PlannedTokens(Response):
    """Row lengths in tokens."""

    min: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: int
    histogram: list[HistogramBin]
    supervised_share: float


class PlannedBatches(Response):
    """Batches of the training rows. Tokens per batch are those of one device."""

    rows_per_step: int
    batches_per_epoch: int
    mean_tokens: float
    max_tokens: int
    tokens_per_epoch: int
    padded_tokens_per_epoch: int = Field(description="Tokens if batches were padded to their longest row.")
    padding_saved: float = Field(description="Share of padded_tokens_per_epoch that padding-free batches save.")
    packed_sequences: int | None


class LeftOutPart(Response):
    """A part of the model that is not trained."""

    what: str
    parameters: int
    reason: str


class PlannedModel(Response):
    """The trained part of the model."""

    parameters: int
    trainable_parameters: int
    share: float | None = Field(None, description="trainable_parameters / (parameters of model and adapter).")
    adapted: dict[str, int] = Field(
        default_factory=dict, description="Number of layers with an adapter, by name; empty without LoRA."
    )
    left_out: list[LeftOutPart] = Field(default_factory=list, description="Parts without an adapter, and why.")
    layout: str | None = Field(
        description="How the rows of a batch are laid out: documents (end to end, without padding), padded, trl or "
        "logits (padded too, for heads that are more than one matrix)."
    )
    gradient_checkpointing: bool


class PlannedMemory(Response):
    """Memory on the device."""

    peak_bytes: int
    free_bytes: int = Field(description="Free at the moment, on a GPU or in main memory.")
    total_bytes: int | None = None
    usable_bytes: int | None = Field(
        None,
        description="What the job can have when its turn comes: all of a GPU, or the main memory that is free or held "
        "by jobs.",
    )
    fits: bool = Field(description="In 90% of usable_bytes: when the job has its turn.")
    fits_now: bool | None = Field(None, description="In 90% of free_bytes: at the moment.")
    largest_batch_size: int = Field(description="It fits even if the longest rows are in one batch.")
    largest_batch_tokens: int
    basis: Annotated[str, one_of("step", "formula")] = Field(
        "step",
        description="A training step of this model on tensors without data, or a formula where it can't be run so.",
    )
    parts: dict[str, int]


class PlannedDisk(Response):
    """Disk space that the job needs."""

    needed_bytes: int
    free_bytes: int
    fits: bool
    checkpoint_bytes: int
    checkpoints_kept: int
    parts: dict[str, int]


class PlannedTime(Response):
    """The job's run time, without its time in the queue."""

    basis: Annotated[str, one_of("past_runs", "probe", "matrix_product")] = Field(
        description="Completed jobs with the same settings, a probe of a few layers, or the speed of a matrix product."
    )
    past_runs: int
    train_seconds: float
    evaluate_seconds: float
    startup_seconds: float
    finish_seconds: float
    total_seconds: float
    tokens_per_second: float
    seconds_per_step: float


class SamplePart(Response):
    """A part of a row's text. `supervised`: it contributes to the loss."""

    text: str
    supervised: bool


class Sample(Response):
    """A rendered row."""

    row: int
    tokens: int
    supervised_tokens: int
    parts: list[SamplePart]
    is_cut: bool


class PlanWarning(Response):
    """A warning about the job."""

    code: str
    message: str
    rows: list[int] | None = Field(
        None, exclude_if=lambda rows: rows is None, description="Row numbers in the data file, if it is about rows."
    )


class Plan(Response):
    """An estimate of a job."""

    model_config = with_example(**EXAMPLE)

    dataset: PlannedDataset
    device: PlannedDevice
    rows: PlannedSplits
    sample: PlannedSample | None = Field(None, description="Set if `rows` and `tokens` are those of a sample.")
    sources: list[PartRows] | None = Field(
        None,
        exclude_if=lambda sources: sources is None,
        description="Each dataset, if there are several, or others to evaluate on.",
    )
    ignored: dict[str, int] = Field(
        default_factory=dict, description="Unused fields, with the number of rows that have them."
    )
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
    was_tokenized_before: bool = False
