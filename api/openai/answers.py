"""Turn the pieces of answers into OpenAI's responses: whole, or the events of a stream."""

from collections import defaultdict
from typing import Any
from uuid import uuid4

Piece = dict[str, Any]


def join_pieces(pieces: list[Piece]) -> tuple[list[Piece], dict[str, int]]:
    """Join the pieces of each answer; returns the answers in order, and the usage."""
    answers: dict[int, Piece] = defaultdict(lambda: {"text": "", "tokens": [], "calls": [], "finish": None})
    usage: dict[str, int] = {}
    for piece in pieces:
        if "usage" in piece:
            usage = write_usage(piece)
            continue
        answer = answers[piece["index"]]
        answer["text"] += piece["text"]
        answer["tokens"] += piece["tokens"]
        answer["calls"] += piece.get("calls", [])
        answer["finish"] = piece["finish"] or answer["finish"]
    return [{"index": index, **answers[index]} for index in sorted(answers)], usage


def write_usage(piece: Piece) -> dict[str, int]:
    """The counts of tokens."""
    usage: dict[str, int] = piece["usage"]
    return {**usage, "total_tokens": sum(usage.values())}


def write_chat_choice(answer: Piece, has_logprobs: bool) -> dict[str, Any]:
    """One answer to a chat."""
    calls = [write_call(call) for call in answer["calls"]]
    content = answer["text"] or (None if calls else "")
    message = {"role": "assistant", "content": content, "refusal": None, **({"tool_calls": calls} if calls else {})}
    return {
        "index": answer["index"],
        "message": message,
        "logprobs": write_chat_logprobs(answer) if has_logprobs else None,
        "finish_reason": find_reason(answer["finish"], bool(calls)),
    }


class ChatDeltas:
    """Writes what is new of answers to a chat, in the order in which it comes."""

    def __init__(self, has_logprobs: bool) -> None:
        self._has_logprobs = has_logprobs
        self._calls: dict[int, int] = {}  # number of calls so far, of each answer that has begun

    def write(self, piece: Piece) -> dict[str, Any]:
        """What is new of one answer."""
        index, made = piece["index"], piece.get("calls", [])
        is_first, count = index not in self._calls, self._calls.get(index, 0)
        self._calls[index] = count + len(made)
        delta: dict[str, Any] = {"role": "assistant"} if is_first else {}
        if piece["text"] or (is_first and not made):
            delta["content"] = piece["text"]
        if made:
            delta["tool_calls"] = [{"index": count + place, **write_call(call)} for place, call in enumerate(made)]
        return {
            "index": index,
            "delta": delta,
            "logprobs": write_chat_logprobs(piece) if self._has_logprobs else None,
            "finish_reason": find_reason(piece["finish"], self._calls[index] > 0),
        }


def find_reason(finish: str | None, has_calls: bool) -> str | None:
    """Why an answer ends: one that is cut off may have calls too."""
    return "tool_calls" if has_calls and finish == "stop" else finish


def write_call(call: Piece) -> dict[str, Any]:
    """A call of a function. Its id has nine letters and digits: templates of Mistral take no other."""
    return {"id": uuid4().hex[:9], "type": "function", "function": call}


def write_chat_logprobs(piece: Piece) -> dict[str, Any]:
    """Log probabilities in the form of chats."""
    return {
        "content": [{**_write_token(one), "top_logprobs": [*map(_write_token, one["top"])]} for one in piece["tokens"]]
    }


def write_completion_choice(piece: Piece, has_logprobs: bool) -> dict[str, Any]:
    """A completion, or what is new of it."""
    return {
        "index": piece["index"],
        "text": piece["text"],
        "logprobs": write_completion_logprobs(piece) if has_logprobs else None,
        "finish_reason": piece["finish"],
    }


def write_completion_logprobs(piece: Piece) -> dict[str, Any]:
    """Log probabilities in the form of completions; offsets count from the begin of the completion."""
    tokens = piece["tokens"]
    return {
        "tokens": [_name_token(one) for one in tokens],
        "token_logprobs": [one["logprob"] for one in tokens],
        "top_logprobs": [{_name_token(top): top["logprob"] for top in one["top"]} for one in tokens],
        "text_offset": [one["offset"] for one in tokens],
    }


def _write_token(one: Piece) -> dict[str, Any]:
    return {"token": one["token"], "logprob": one["logprob"], "bytes": one["bytes"]}


def _name_token(one: Piece) -> str:
    r"""The text of a token; of a part of a character its bytes, as OpenAI writes them: `bytes:\xf0\x9f`."""
    text, found = str(one["token"]), one["bytes"]
    if found is None or bytes(found) == text.encode():
        return text
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in found)
