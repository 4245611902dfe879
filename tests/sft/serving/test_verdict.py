"""What a serving check's replies are taken for, and that its result is what the wire model says."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sft.errors import ResultUnusable
from sft.serving.process import Replies, Request
from sft.serving.verdict import Verdict, judge, skip
from tasks.serving import describe
from tuneyard_wire.serving_check import ServingCheck

KEYS = {"stage": "keys", "missing": [], "unexpected": []}
EQUAL = {"stage": "prompt", "row": 1, "difference": None}
STOPPED = {"stage": "answer", "row": 1, "stopped": True, "tokens": 5}
ENDLESS = STOPPED | {"stopped": False, "tokens": 64}
LOSS = {"stage": "loss", "loss": 1.0}
DONE = {"stage": "done", "ours": []}


@dataclass
class Judged:
    """Judges replies about an adapter that was trained to a loss of 1."""

    dtype: str = "float32"
    base: Path | None = Path("/base")
    reasons: list[str] = field(default_factory=list)

    def __call__(self, *told: dict[str, Any], problem: str | None = None) -> Verdict:
        request = Request(
            Path("/out/adapter"), self.base, "AutoModelForCausalLM", self.dtype, "cpu", [], True, None, 60.0
        )
        return judge(request, Replies([*told], problem), 1.0, self.reasons)


def test_what_equals_training_passes() -> None:
    verdict = Judged()(EQUAL, EQUAL, KEYS, LOSS, STOPPED, ENDLESS, DONE)
    assert verdict == Verdict("passed", None, (), 2, 2, 2, 1, 1.0, 1.0)
    assert verdict.warnings == []
    assert describe(verdict) == (
        "2 of 2 prompts have the token ids trained on; 1 of 2 answers end by themselves; "
        "loss 1.0000 beside 1.0000 in training"
    )


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (EQUAL | {"row": 7, "difference": "token 3 is 'x' and was 'y' in training"}, "(row 7: token 3 is 'x' and was"),
        (KEYS | {"missing": ["a", "b", "c", "d"]}, "the saved file lacks 4 weights: a, b, c, …"),
        (KEYS | {"unexpected": ["e"]}, "there is no place for 1 weights of the saved file: e"),
        (LOSS | {"loss": 1.01}, "is 1.0100 with the saved files and was 1.0000 in training"),
        (LOSS | {"loss": float("nan")}, "is nan with the saved files"),
        (ENDLESS, "1 of 1 answers did not end by themselves within 64 tokens"),
        ({"stage": "base", "error": "odd", "is_of_machine": False}, "transformers alone can't load the base model"),
        ({"stage": "loss", "error": "odd", "is_of_machine": False}, "can't compute with transformers and PEFT alone"),
    ],
)
def test_what_differs_is_a_warning(reply: dict[str, Any], words: str) -> None:
    verdict = Judged()(reply, DONE)
    assert verdict.status == "warning"
    (sentence,) = verdict.warnings
    assert words in sentence
    assert words in describe(verdict)
    assert verdict.served_loss is None or verdict.served_loss == 1.01  # JSON has no NaN


def test_half_precision_may_differ_by_its_rounding() -> None:
    assert Judged("bfloat16")(LOSS | {"loss": 1.01}, DONE).status == "passed"
    assert Judged("bfloat16")(LOSS | {"loss": 1.1}, DONE).status == "warning"


@pytest.mark.parametrize(
    ("stage", "base"), [("tokenizer", Path("/base")), ("adapter", Path("/base")), ("base", None), ("tokenizer", None)]
)
def test_what_cant_be_loaded_at_all_is_an_error(stage: str, base: Path | None) -> None:
    with pytest.raises(ResultUnusable, match=r"can't load .*\(cut off\); it is in /out/adapter"):
        Judged(base=base)({"stage": stage, "error": "cut off", "is_of_machine": False})


@pytest.mark.parametrize("stage", ["tokenizer", "base", "adapter", "loss"])
def test_a_machine_that_is_too_small_is_no_error_of_the_files(stage: str) -> None:
    verdict = Judged()(EQUAL, {"stage": stage, "error": "out of memory", "is_of_machine": True})
    assert (verdict.status, verdict.findings) == ("skipped", ())
    assert verdict.reason == "this machine can't load it: out of memory"
    assert "out of memory" in describe(verdict)


def test_a_check_that_was_not_finished_has_not_passed() -> None:
    verdict = Judged(reasons=["no dates"])(EQUAL, problem="it took more than 60 s")
    assert (verdict.status, verdict.reason, verdict.prompts) == ("skipped", "no dates; it took more than 60 s", 1)
    found = Judged()(EQUAL | {"difference": "all"}, problem="it took more than 60 s")
    assert (found.status, len(found.findings)) == ("warning", 1)


def test_an_answer_that_was_cut_off_says_nothing_about_the_model() -> None:
    verdict = Judged()(STOPPED | {"stopped": None}, DONE)
    assert (verdict.status, verdict.answers) == ("passed", 0)
    assert verdict.reason == "1 of 1 answers were cut off before their limit"


@pytest.mark.parametrize("verdict", [skip("off"), Judged()(EQUAL, KEYS, LOSS, STOPPED, DONE)])
def test_the_result_is_what_the_wire_model_has(verdict: Verdict) -> None:
    assert set(verdict._asdict()) == set(ServingCheck.model_fields) == set(ServingCheck.example())
    assert ServingCheck.model_validate(verdict._asdict()).status == verdict.status
