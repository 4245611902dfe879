"""Turn the pieces of answers into OpenAI's responses: whole, or the events of a stream."""

from collections import defaultdict
from typing import Any

Piece = dict[str, Any]


def join_pieces(pieces: list[Piece]) -> tuple[list[Piece], dict[str, int]]:
    """Join the pieces of each answer; returns the answers in order, and the usage."""
    answers: dict[int, Piece] = defaultdict(lambda: {"text": "", "tokens": [], "finish": None})
    usage: dict[str, int] = {}
    for piece in pieces:
        if "usage" in piece:
            usage = write_usage(piece)
            continue
        answer = answers[piece["index"]]
        answer["text"] += piece["text"]
        answer["tokens"] += piece["tokens"]
        answer["finish"] = piece["finish"] or answer["finish"]
    return [{"index": index, **answers[index]} for index in sorted(answers)], usage


def write_usage(piece: Piece) -> dict[str, int]:
    """The counts of tokens."""
    usage: dict[str, int] = piece["usage"]
    return {**usage, "total_tokens": sum(usage.values())}


def write_chat_choice(answer: Piece, has_logprobs: bool) -> dict[str, Any]:
    """One answer to a chat."""
    return {
        "index": answer["index"],
        "message": {"role": "assistant", "content": answer["text"], "refusal": None},
        "logprobs": write_chat_logprobs(answer) if has_logprobs else None,
        "finish_reason": answer["finish"],
    }


def write_chat_delta(piece: Piece, has_logprobs: bool, is_first: bool) -> dict[str, Any]:
    """What is new of one answer to a chat."""
    delta: dict[str, Any] = {"role": "assistant"} if is_first else {}
    if piece["text"] or is_first:
        delta["content"] = piece["text"]
    return {
        "index": piece["index"],
        "delta": delta,
        "logprobs": write_chat_logprobs(piece) if has_logprobs else None,
        "finish_reason": piece["finish"],
    }


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
        "tokens": [one["token"] for one in tokens],
        "token_logprobs": [one["logprob"] for one in tokens],
        "top_logprobs": [{top["token"]: top["logprob"] for top in one["top"]} for one in tokens],
        "text_offset": [one["offset"] for one in tokens],
    }


def _write_token(one: Piece) -> dict[str, Any]:
    return {"token": one["token"], "logprob": one["logprob"], "bytes": [*one["token"].encode("utf-8", "replace")]}
