"""What a job would take: the response to a request for a plan."""

from typing import Annotated, Any

from pydantic import Field

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


_NOTES: dict[str, Any] = {
    "invalid": [{"row": 17, "reason": "output must be text, got None"}],
    "too_long": [],
    "dropped": [],
}
_EVAL: dict[str, Any] = {
    "rows": 98,
    "used": 98,
    "skipped": 0,
    "reasons": [],
    "dropped": 0,
    "invalid": 0,
    "too_long": 0,
    "truncated": 0,
}
_EXAMPLE: dict[str, Any] = {
    "dataset": {
        "name": "handbook",
        "revision": "v1.0",
        "commit": "4b825dc642cb6eb9a060e54bf8d69288fbee4904",
        "md5": "0e0abd9b182bab936d99f224cab7853e",
        "rows": 901,
        "held_out_file": "eval.jsonl",
        "source": "dvc",
    },
    "device": {
        "name": "NVIDIA L4",
        "kind": "cuda",
        "dtype": "bfloat16",
        "memory_bytes": 23034068992,
        "free_memory_bytes": 22600000000,
        "gflops": 61200.0,
    },
    "rows": {
        "train": {
            "rows": 901,
            "used": 900,
            "skipped": 1,
            "reasons": [{"reason": "output must be text, got None", "count": 1, "rows": [17]}],
            "dropped": 0,
            "invalid": 1,
            "too_long": 0,
            "truncated": 1,
            "tokens": 163495,
            "supervised_tokens": 137452,
            "notes": _NOTES | {"truncated": [225]},
        },
        "eval": _EVAL
        | {"tokens": 16593, "supervised_tokens": 13673, "notes": _NOTES | {"invalid": [], "truncated": []}},
    },
    "ignored": {"source": 998},
    "tokens": {
        "min": 26,
        "mean": 181.5,
        "p50": 142.0,
        "p90": 386.0,
        "p95": 427.0,
        "p99": 540.0,
        "max": 729,
        "histogram": [{"from": 0, "to": 32, "rows": 20}, {"from": 32, "to": 64, "rows": 238}],
        "supervised_share": 0.8407,
    },
    "batches": {
        "rows_per_step": 16,
        "batches_per_epoch": 226,
        "mean_tokens": 723.4,
        "max_tokens": 1434,
        "tokens_per_epoch": 163495,
        "padded_tokens_per_epoch": 300375,
        "padding_saved": 0.4557,
        "packed_sequences": None,
    },
    "steps": 171,
    "epochs": 3.0,
    "model": {
        "parameters": 1543714304,
        "trainable_parameters": 9232384,
        "share": 0.0059,
        "adapted": {"down_proj": 28, "gate_proj": 28, "q_proj": 28},
        "left_out": [],
        "layout": "trl",
        "gradient_checkpointing": False,
    },
    "memory": {
        "peak_bytes": 9100000000,
        "free_bytes": 22600000000,
        "fits": True,
        "largest_batch_size": 14,
        "largest_batch_tokens": 7100,
        "parts": {"process": 600000000, "weights": 3087428608, "activations": 5000000000},
    },
    "disk": {
        "needed_bytes": 430000000,
        "free_bytes": 76765184000,
        "fits": True,
        "checkpoint_bytes": 122000000,
        "checkpoints_kept": 2,
        "parts": {"checkpoints": 366000000, "adapter": 40000000, "merged_model": 0, "registry": 40000000},
    },
    "time": {
        "basis": "probe",
        "past_runs": 0,
        "train_seconds": 182.0,
        "evaluate_seconds": 6.1,
        "startup_seconds": 8.0,
        "finish_seconds": 4.0,
        "total_seconds": 200.1,
        "tokens_per_second": 2695.0,
        "seconds_per_step": 1.064,
    },
    "samples": [
        {
            "row": 24,
            "tokens": 142,
            "supervised_tokens": 125,
            "parts": [
                {"text": "<|im_start|>user\nName three vaccinations ...", "supervised": False},
                {"text": "1. Influenza ...<|im_end|>", "supervised": True},
            ],
            "is_cut": False,
        }
    ],
    "warnings": [{"code": "duplicates", "message": "13 rows are duplicates of earlier ones", "rows": [31, 402]}],
    "was_tokenized_before": False,
}


class Plan(Response):
    """What a job would take."""

    model_config = with_example(**_EXAMPLE)

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
