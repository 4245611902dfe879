"""What the replies of a serving check say: whether the saved model is the one that was trained."""

import math
from typing import Any, Literal, NamedTuple

from sft.errors import ResultUnusable
from sft.serving.process import Replies, Request

SHOWN = 3
TOLERANCES = {"float32": 1e-3}  # of a loss: absolute, and relative to it
HALF_PRECISION = 2e-2  # kernels of training and of plain attention round differently
FATAL = {
    "tokenizer": "transformers can't load the tokenizer that was saved with the result",
    "adapter": "PEFT can't load the saved adapter into its base model",
    "base": "transformers can't load the saved model",
}


class Verdict(NamedTuple):
    """The result of a serving check.

    Attributes:
        status: `warning` with findings, `skipped` if it was not made or not finished, else `passed`.
        reason: why it was not made, or what part of it.
        findings: sentences about what differs from training.
        prompts: rows whose prompt was written by the saved tokenizer; `equal_prompts`: with the ids trained on.
        answers: prompts that were answered; `stopped_answers`: that ended by themselves.
        loss: loss of a few rows as training measures it; `served_loss`: by transformers and PEFT alone.
    """

    status: Literal["passed", "warning", "skipped"]
    reason: str | None = None
    findings: tuple[str, ...] = ()
    prompts: int = 0
    equal_prompts: int = 0
    answers: int = 0
    stopped_answers: int = 0
    loss: float | None = None
    served_loss: float | None = None

    @property
    def warnings(self) -> list[str]:
        """Sentences for the job's result."""
        return [f"serving check: {finding}" for finding in self.findings]


def skip(reason: str) -> Verdict:
    """The verdict of a check that is not made."""
    return Verdict("skipped", reason)


def judge(request: Request, replies: Replies, loss: float, reasons: list[str]) -> Verdict:
    """Judge what the process told.

    Args:
        loss: of the same rows, by the trainer.
        reasons: what is not compared, and why.

    Raises:
        ResultUnusable: the saved files can't be loaded at all.
    """
    reasons = [*reasons, *([replies.problem] if replies.problem else [])]
    findings: list[str] = []
    for reply in replies.told:
        if "error" in reply:
            finding, reason = _read_error(request, reply)
            findings += finding
            reasons += reason
    stages: dict[str, list[dict[str, Any]]] = {}
    for reply in replies.told:
        if "error" not in reply:
            stages.setdefault(reply["stage"], []).append(reply)
    for keys in stages.get("keys", []):
        findings += _read_keys(keys)
    prompts, answers = stages.get("prompt", []), stages.get("answer", [])
    different = [reply for reply in prompts if reply["difference"]]
    findings += _read_prompts(different, len(prompts))
    ended = [reply for reply in answers if reply["stopped"] is not None]
    stopped = sum(reply["stopped"] for reply in ended)
    if len(ended) < len(answers):
        reasons.append(f"{len(answers) - len(ended)} of {len(answers)} answers were cut off before their limit")
    if ended and 2 * stopped < len(ended):
        most = max(reply["tokens"] for reply in ended)
        findings.append(
            f"{len(ended) - stopped} of {len(ended)} answers did not end by themselves within {most} tokens; train for "
            "longer, or set max_tokens where the adapter is served"
        )
    served = next((reply["loss"] for reply in stages.get("loss", [])), None)
    findings += _compare_losses(request, loss, served)
    is_done = "done" in stages
    status: Literal["passed", "warning", "skipped"] = "warning" if findings else "passed" if is_done else "skipped"
    served = served if served is not None and math.isfinite(served) else None
    counts = (len(prompts), len(prompts) - len(different), len(ended), stopped)
    return Verdict(status, "; ".join(reasons) or None, tuple(findings), *counts, loss, served)


def _read_error(request: Request, reply: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What an error of a stage is: a finding, or a reason why the check was not finished."""
    stage, error = reply["stage"], reply["error"]
    if reply["is_of_machine"]:
        return [], [f"this machine can't load it: {error}"]
    if stage == "base" and request.base is not None:
        return [
            f"transformers alone can't load the base model ({error}); Tuneyard can, so chat and merged model work"
        ], []
    if stage in FATAL:
        raise ResultUnusable(f"{FATAL[stage]} ({error}); it is in {request.adapter}")
    return [f"the saved model can't compute with transformers and PEFT alone ({error})"], []


def _read_keys(keys: dict[str, Any]) -> list[str]:
    found = []
    if lacking := keys["missing"]:
        found.append(f"the saved file lacks {len(lacking)} weights: {_shorten(lacking)}")
    if left := keys["unexpected"]:
        found.append(f"there is no place for {len(left)} weights of the saved file: {_shorten(left)}")
    return found


def _shorten(names: list[str]) -> str:
    return ", ".join([*names[:SHOWN], *(["…"] if len(names) > SHOWN else [])])


def _read_prompts(different: list[dict[str, Any]], count: int) -> list[str]:
    if not different:
        return []
    first = different[0]
    return [
        f"{len(different)} of {count} prompts, as the saved tokenizer writes them, do not have the token ids trained "
        f"on (row {first['row']}: {first['difference']})"
    ]


def _compare_losses(request: Request, loss: float, served: float | None) -> list[str]:
    if served is None:
        return []
    tolerance = TOLERANCES.get(request.dtype, HALF_PRECISION)
    if abs(served - loss) <= tolerance * (1 + abs(loss)):  # false for NaN
        return []
    return [
        f"the loss of {len(request.samples)} rows is {served:.4f} with the saved files and was {loss:.4f} in training"
    ]
