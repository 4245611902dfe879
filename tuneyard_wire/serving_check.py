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

    def list_facts(self) -> list[str]:
        """What was counted and measured, and why not more, as parts of a sentence; without the findings."""
        facts = []
        if self.prompts:
            facts.append(f"{self.equal_prompts} of {self.prompts} prompts have the token ids trained on")
        if self.answers:
            facts.append(f"{self.stopped_answers} of {self.answers} answers end by themselves")
        if self.served_loss is not None and self.loss is not None:
            facts.append(f"loss {self.served_loss:.4f} beside {self.loss:.4f} in training")
        return [*facts, *([self.reason] if self.reason else [])]
