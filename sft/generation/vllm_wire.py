"""Requests to vLLM's `/v1/completions` and its answers: token ids in, token ids with their log probabilities out."""

import json
from collections.abc import Iterator
from typing import Any

from sft.generation.sequences import Sequence

PREFIX = "token_id:"  # of a token's name under `return_tokens_as_token_ids`
DATA, DONE = "data:", "[DONE]"


class StreamError(Exception):
    """An error that vLLM sent in place of tokens."""


def build_request(sequence: Sequence, model: str) -> dict[str, Any]:
    """The body of the request for one sequence.

    Args:
        model: vLLM's name of the base model or the adapter.
    """
    sampling = sequence.sampling
    body: dict[str, Any] = {
        "model": model,
        "prompt": sequence.ids,
        "max_tokens": sequence.tokens_left,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "ignore_eos": True,  # the tokens that end an answer are ours
        "stop_token_ids": sorted(sequence.ends),
        "stream": True,
        "return_token_ids": True,
    }
    if sampling.seed is not None:
        body["seed"] = (sampling.seed + sequence.index) % 2**63
    if sampling.logprobs is not None:
        body |= {"logprobs": sampling.logprobs, "return_tokens_as_token_ids": True}
    return body


def read_line(line: str, most: int | None) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yield each token in a line of the stream, with what `Sequence.take` wants to know of it.

    Args:
        most: number of most likely tokens that were asked for; None if no log probabilities were.

    Raises:
        StreamError: vLLM reports an error.
    """
    content = line.removeprefix(DATA).strip()
    if not line.startswith(DATA) or content == DONE:
        return
    chunk = json.loads(content)
    if "error" in chunk:
        raise StreamError(str(chunk["error"].get("message", chunk["error"])))
    for choice in chunk.get("choices", ()):
        found = choice.get("logprobs") or {}
        for place, token in enumerate(choice.get("token_ids") or ()):
            yield token, None if most is None else _read_report(found, place, most)


def _read_report(found: dict[str, Any], place: int, most: int) -> dict[str, Any]:
    """vLLM adds the token itself to the most likely ones."""
    top = [(int(name.removeprefix(PREFIX)), value) for name, value in (found["top_logprobs"][place] or {}).items()]
    top.sort(key=lambda one: -one[1])
    return {"logprob": found["token_logprobs"][place], "top": top[:most]}
