"""What answers look like in OpenAI's responses."""

import pytest

from api.openai.answers import write_completion_logprobs


def token(text: str, logprob: float) -> dict:
    return {"token": text, "bytes": [*text.encode()], "logprob": logprob}


def test_parts_of_characters_keep_their_log_probabilities_apart():
    first = {"token": "\ufffd", "bytes": [0xF0, 0x9F], "logprob": -0.1}
    second = {"token": "\ufffd", "bytes": [0x98], "logprob": -2.0}
    tokens = [{**first, "offset": 0, "top": [first, second, token("a", -3.0)]}]
    found = write_completion_logprobs({"tokens": tokens})
    assert found["tokens"] == ["bytes:\\xf0\\x9f"]
    assert found["top_logprobs"] == [{"bytes:\\xf0\\x9f": -0.1, "bytes:\\x98": -2.0, "a": -3.0}]


@pytest.mark.parametrize("text", ["", " a", "\u00e9", "\ufffd", "\\xf0"])
def test_whole_characters_are_their_own_text(text):
    made = token(text, -1.0)
    found = write_completion_logprobs({"tokens": [{**made, "offset": 3, "top": [made]}]})
    assert (found["tokens"], found["top_logprobs"], found["text_offset"]) == ([text], [{text: -1.0}], [3])
