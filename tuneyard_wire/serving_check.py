"""The result of a serving check."""

from typing import Annotated

from pydantic import Field

from tuneyard_wire.response import Response, one_of, with_example

CheckStatus = Annotated[str, one_of("passed", "warning", "skipped")]


class ServingCheck(Response):
    """Whether the saved files give the trained model in a fresh process with transformers and PEFT alone."""

    model_config = with_example(
        status="passed",
        reason=None,
        findings=[],
        prompts=4,
        equal_prompts=4,
        answers=3,
        stopped_answers=3,
        loss=0.4406,
        served_loss=0.4406,
    )

    status: CheckStatus
    reason: str | None = Field(None, description="Why the check, or a part of it, was not made.")
    findings: list[str] = Field(default_factory=list, description="What differs from training.")
    prompts: int = Field(0, description="Rows whose prompt the saved tokenizer and template wrote.")
    equal_prompts: int = Field(0, description="Those whose token ids are the ones trained on.")
    answers: int = Field(0, description="Prompts that were answered, greedily.")
    stopped_answers: int = Field(0, description="Answers that ended by themselves.")
    loss: float | None = Field(None, description="Loss of a few held-out rows, as training measures it.")
    served_loss: float | None = Field(None, description="Loss of the same rows with the saved files.")
