"""`RetrainSpec`: the parameters of the `retrain` flow."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sft.config import PathText
from sft.errors import InvalidConfig
from sft.explanations import Matching, explain_validation_error

_NOT_BLANK = Matching(r"\S", "must not be blank")


class RetrainSpec(BaseModel):
    """Which adapter to check for changed data. The fields are exactly the parameters of the `retrain` flow."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    adapter_name: Annotated[str, _NOT_BLANK] = Field(max_length=200, description="An adapter in the registry.")
    dataset_version: Annotated[PathText, _NOT_BLANK] | None = Field(
        None,
        description="Branch, tag or commit of its dataset to look at; the main branch of the registry if unset.",
    )
    force: bool = Field(False, description="Submit a job though nothing has changed, or such a job has ended before.")

    @classmethod
    def build(cls, **values: Any) -> "RetrainSpec":
        """Validate plain values. Raises InvalidConfig with every problem, one a line."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InvalidConfig(explain_validation_error(error, cls)) from error
