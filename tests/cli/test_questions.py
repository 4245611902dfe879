"""What `tuneyard generate` asks of a training row is what a job trains on: both read the same forms."""

import json

import pytest

from sft.data.formats import read_row
from tuneyard_cli.questions import read_questions

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}
SAID = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ANSWER]},
        {"messages": [{"role": "system", "content": "Be brief."}, USER, ANSWER, USER, ANSWER]},
        {"messages": [USER, ANSWER | {"weight": 0}, USER, ANSWER | {"name": None}]},
        {"messages": json.dumps([USER, ANSWER])},
        {"conversations": SAID},
        {"conversations": SAID, "system": "Be brief."},
        {"messages": [], "conversations": SAID},
        {"messages": [USER, ANSWER], "prompt": "Hi"},
        {"instruction": "Add.", "input": "1 1", "output": "2"},
        {"instruction": "Add.", "input": "", "output": "2", "system": "Be brief."},
        {"instruction": "Add.", "input": None, "output": "2", "history": [["More?", "Yes."], ["Sure?", "Yes."]]},
        {"instruction": "", "input": "1 1", "output": "2"},
        {"instruction": "Add.", "output": "2", "prompt": "Hi"},
        {"prompt": [USER], "completion": [ANSWER]},
    ],
)
def test_the_messages_of_a_row_are_those_of_a_job(row, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row))
    (question,) = read_questions(file)
    asked = [(one["role"], one["content"]) for one in question.asked]
    trained = [(one["role"], one["content"]) for one in read_row(row, "auto").messages]
    assert [*asked, ("assistant", question.reference["reference"])] == trained


def test_the_text_of_a_row_is_that_of_a_job(tmp_path):
    row = {"prompt": "The office", "completion": " opens."}
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row))
    (question,) = read_questions(file)
    trained = read_row(row, "auto")
    assert (question.asked, question.reference) == (trained.prompt, {"reference": trained.completion})
