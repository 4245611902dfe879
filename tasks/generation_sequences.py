"""The sequences of a request to the generation process, and the pieces that are sent of them."""

from typing import TYPE_CHECKING, Any

from tasks.generation_work import GenerationWork

if TYPE_CHECKING:
    from sft.generation.sequences import Sequence


def make_sequences(work: GenerationWork, tokenizer: Any) -> "list[Sequence]":
    """Make the sequences of a request: `n` for each prompt, numbered through."""
    from sft.generation.room import find_ends
    from sft.generation.sampling import Sampling

    request, ends = work.request, find_ends(work.base, tokenizer)
    return [
        _make_sequence(work, tokenizer, ids, ends, number * request["n"] + copy, Sampling(**request["sampling"]), copy)
        for number, ids in enumerate(work.prompts)
        for copy in range(request["n"])
    ]


def _make_sequence(
    work: GenerationWork, tokenizer: Any, ids: list[int], ends: set[int], index: int, sampling: Any, copy: int
) -> "Sequence":
    from sft.generation.call_forms import FORMS
    from sft.generation.calls import CallReader
    from sft.generation.sequences import Piece, Sequence
    from sft.generation.text import TextReader
    from sft.generation.token_texts import TokenTexts

    request = work.request
    form = FORMS[work.calls] if work.calls else None
    calls = CallReader(form, request["tools"]) if form else None

    def emit(piece: Piece) -> None:
        tokens = [*map(texts.describe, piece.tokens)]
        sent = {"index": index, "text": piece.text, "tokens": tokens, "finish": piece.finish}
        if calls is not None:
            sent["text"], found = calls.read(piece.text, piece.finish is not None)
            sent["calls"] = [call._asdict() for call in found]
            if not (sent["text"] or found or tokens or piece.finish):
                return
        work.reply.write(sent)

    kept = form.tokens if form else ()
    texts, reader = TokenTexts(tokenizer, kept), TextReader(tokenizer, tuple(request["stop"]), kept)
    return Sequence(ids, request["max_tokens"], sampling, copy, ends, reader, emit, lambda: work.reply.is_gone)
