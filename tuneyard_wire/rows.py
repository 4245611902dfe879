"""What became of a dataset's rows, in a plan and in a job's result."""

from pydantic import Field

from tuneyard_wire.response import Response, with_example


class SkipReason(Response):
    """Why rows can't be read."""

    reason: str
    count: int = Field(description="How many rows.")
    rows: list[int] = Field(description="The first of them: numbers in the data file, from 1.")


class SplitRows(Response):
    """What becomes of a split's rows: `rows` = `used` + `skipped`; `skipped` = `dropped` + `invalid` + `too_long`."""

    rows: int
    used: int
    skipped: int = 0
    dropped: int = Field(0, description="Nothing to learn in them.")
    invalid: int = Field(0, description="They can't be read, for one of `reasons`.")
    too_long: int = Field(0, description="Left out by excess_length_strategy drop.")
    truncated: int = Field(0, description="Cut at max_seq_length.")
    tokens: int
    supervised_tokens: int
    reasons: list[SkipReason] = Field(default_factory=list)


class JobRows(Response):
    """The rows that were learned from, those held out, and the fields that were not followed."""

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
        description="Fields of rows and messages that hold something and are not followed, by the number of rows.",
    )
