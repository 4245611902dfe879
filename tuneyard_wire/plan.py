"""What a job would take: the response to a request for a plan."""

from typing import Annotated

from pydantic import Field

from tuneyard_wire.plan_example import EXAMPLE
from tuneyard_wire.response import Response, with_example, words
from tuneyard_wire.rows import SplitRows


class PlannedDataset(Response):
    """Exactly which rows the plan is of."""

    name: str
    revision: str | None
    commit: str | None
    md5: str
    rows: int
    held_out_file: str | None = Field(None, description="The file of the held-out rows, if they have one.")
    source: Annotated[str, words("dvc", "file", "hub")]


class PlannedDevice(Response):
    """The device the plan is made for: the one of the machine that made it."""

    name: str
    kind: Annotated[str, words("cpu", "cuda")]
    dtype: str
    memory_bytes: int
    free_memory_bytes: int
    gflops: float = Field(description="Measured on a matrix product of this dtype.")


class InvalidRow(Response):
    """A row that can't be read."""

    row: int
    reason: str


class RowNotes(Response):
    """Row numbers in the data file, from 1; the first 100 of each kind."""

    invalid: list[InvalidRow]
    dropped: list[int] = Field(description="Nothing to learn in them.")
    too_long: list[int] = Field(description="Left out by excess_length_strategy drop.")
    truncated: list[int]


class PlannedRows(SplitRows):
    """What becomes of a split's rows."""

    notes: RowNotes


class PlannedSplits(Response):
    """The rows that are learned from, and those held out."""

    train: PlannedRows
    eval: PlannedRows | None


class HistogramBin(Response):
    """Rows of `from` tokens and more, but fewer than `to`."""

    start: int = Field(alias="from")
    to: int
    rows: int


class PlannedTokens(Response):
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


class PlannedBatches(Response):
    """How the rows go into batches. Tokens of a batch are a device's."""

    rows_per_step: int
    batches_per_epoch: int
    mean_tokens: float
    max_tokens: int
    tokens_per_epoch: int
    padded_tokens_per_epoch: int = Field(description="If each batch of batch_size were padded to its longest row.")
    padding_saved: float = Field(description="Share of these that rows laid end to end don't need.")
    packed_sequences: int | None


class LeftOutPart(Response):
    """A part of the model that stays as it is."""

    what: str
    parameters: int
    reason: str


class PlannedModel(Response):
    """What is trained of the model."""

    parameters: int
    trainable_parameters: int
    share: float | None = Field(None, description="Of the weights of the model with its adapter that are trained.")
    adapted: dict[str, int] = Field(
        default_factory=dict, description="Layers that get an adapter, by name; empty without LoRA."
    )
    left_out: list[LeftOutPart] = Field(default_factory=list, description="What gets no adapter, and why.")
    layout: str | None
    gradient_checkpointing: bool


class PlannedMemory(Response):
    """Memory of the device."""

    peak_bytes: int
    free_bytes: int
    fits: bool
    largest_batch_size: int = Field(description="That fits even if the longest rows come together.")
    largest_batch_tokens: int
    parts: dict[str, int]


class PlannedDisk(Response):
    """What the job writes."""

    needed_bytes: int
    free_bytes: int
    fits: bool
    checkpoint_bytes: int
    checkpoints_kept: int
    parts: dict[str, int]


class PlannedTime(Response):
    """How long the job runs once it has a free device."""

    basis: Annotated[str, words("past_runs", "probe", "matrix_product")] = Field(
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


class SamplePart(Response):
    """Text that is learned, or only read."""

    text: str
    supervised: bool


class Sample(Response):
    """A row as the model reads it."""

    row: int
    tokens: int
    supervised_tokens: int
    parts: list[SamplePart]
    is_cut: bool


class PlanWarning(Response):
    """Something to know before the job is started."""

    code: str
    message: str
    rows: list[int] | None = Field(
        None, exclude_if=lambda rows: rows is None, description="Numbers in the data file, where rows are meant."
    )


class Plan(Response):
    """What a job would take."""

    model_config = with_example(**EXAMPLE)

    dataset: PlannedDataset
    device: PlannedDevice
    rows: PlannedSplits
    ignored: dict[str, int] = Field(
        default_factory=dict, description="Fields of the rows that are not followed, by the number of rows."
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
