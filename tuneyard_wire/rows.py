"""Row counts of a dataset, in a plan and in a job's result."""

from pydantic import Field

from tuneyard_wire.response import Response, with_example


class SkipReason(Response):
    """Why rows are invalid."""

    reason: str
    count: int = Field(description="Number of rows.")
    rows: list[int] = Field(description="The first ones, as row numbers in the data file, counted from 1.")


class SplitRows(Response):
    """Row counts of a split: `rows` = `used` + `skipped`; `skipped` = `dropped` + `invalid` + `too_long`."""

    rows: int
    used: int
    skipped: int = 0
    dropped: int = Field(0, description="Rows without supervised tokens.")
    invalid: int = Field(0, description="Invalid rows, for one of `reasons`.")
    too_long: int = Field(0, description="Dropped by excess_length_strategy drop.")
    truncated: int = Field(0, description="Truncated at max_seq_length.")
    tokens: int
    supervised_tokens: int
    reasons: list[SkipReason] = Field(default_factory=list)


class PartRows(Response):
    """A dataset of a job that has several: its rows, and what an epoch takes of them.

    `taken` = used training rows + `repeated` - `left_out`; null for a dataset that is only evaluated on, whose counts
    are in `eval`.
    """

    name: str
    label: str = Field(description="As in the metric `eval_loss/<label>`.")
    weight: float | None = Field(description="How often an epoch takes its rows.")
    first_row: int = Field(description="Number of its first row where the rows of all datasets are counted through.")
    train: SplitRows | None = None
    eval: SplitRows | None = None
    taken: int | None = None
    repeated: int | None = None
    left_out: int | None = None


class JobRows(Response):
    """Row counts of the training and held-out rows, and the unused fields."""

    model_config = with_example(
        train={
            "rows": 901,
            "used": 899,
            "skipped": 2,
            "dropped": 1,
            "invalid": 1,
            "too_long": 0,
            "truncated": 1,
            "tokens": 163495,
            "supervised_tokens": 137452,
            "reasons": [{"reason": "output must be text, got None", "count": 1, "rows": [17]}],
        },
        eval=None,
        ignored={"source": 899},
    )

    train: SplitRows
    eval: SplitRows | None = None
    ignored: dict[str, int] = Field(
        default_factory=dict,
        description="Unused fields of rows and messages that are not empty, with the number of rows that have them.",
    )
