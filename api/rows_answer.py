"""What became of a dataset's rows, in a plan and in a job's result."""

from pydantic import BaseModel, ConfigDict, Field


class SkipReason(BaseModel):
    """Why rows can't be read."""

    model_config = ConfigDict(extra="allow")

    reason: str
    count: int = Field(description="How many rows.")
    rows: list[int] = Field(description="The first of them: numbers in the data file, from 1.")


class SplitRows(BaseModel):
    """What becomes of a split's rows: `rows` = `used` + `skipped`; `skipped` = `dropped` + `invalid` + `too_long`."""

    model_config = ConfigDict(extra="allow")

    rows: int
    used: int
    skipped: int
    dropped: int = Field(description="Nothing to learn in them.")
    invalid: int = Field(description="They can't be read, for one of `reasons`.")
    too_long: int = Field(description="Left out by excess_length_strategy drop.")
    truncated: int = Field(description="Cut at max_seq_length.")
    tokens: int
    supervised_tokens: int
    reasons: list[SkipReason]


class JobRows(BaseModel):
    """The rows that were learned from, those held out, and the fields that were not followed."""

    model_config = ConfigDict(extra="allow")

    train: SplitRows
    eval: SplitRows | None
    ignored: dict[str, int] = Field(
        description="Fields of rows and messages that hold something and are not followed, by the number of rows."
    )
