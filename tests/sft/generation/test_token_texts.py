"""The bytes of an answer's tokens are those of its text, also where several tokens make up a character."""

from itertools import pairwise

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from sft.generation.sampling import Sampling
from sft.generation.sequences import Piece, Sequence
from sft.generation.text import TextReader
from sft.generation.token_texts import TokenTexts
from tests.tiny_models import build_byte_tokenizer, build_tokenizer

TEXT = "Hello, \N{GRINNING FACE}\N{EMOJI MODIFIER FITZPATRICK TYPE-4} naïve 世界 end  \N{FAMILY}"


def build_llama2_tokenizer() -> PreTrainedTokenizerFast:
    """Words that carry their space, which the decoder drops from the first one, and bytes for other characters."""
    backend = build_byte_tokenizer().backend_tokenizer
    vocabulary = {**backend.get_vocab(with_added_tokens=False), "▁a": 900, "▁e": 901, "▁H": 902}
    merges = [("▁", "a"), ("▁", "e"), ("▁", "H")]
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(parts)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="<unk>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    return tokenizer


@pytest.fixture(params=[build_tokenizer, build_byte_tokenizer, build_llama2_tokenizer])
def tokenizer(request):
    return request.param()


def answer(tokenizer, ids, top=(), stops=()):
    """Give the tokens to a sequence; returns its pieces, and the description of each piece's tokens."""
    pieces: list[Piece] = []
    reader = TextReader(tokenizer, stops)
    sequence = Sequence([0], len(ids), Sampling(), 0, {tokenizer.eos_token_id}, reader, pieces.append)
    for token in ids:
        if not sequence.is_finished:
            sequence.take(token, {"logprob": -1.0, "top": [(other, -1.0) for other in top]})
    texts = TokenTexts(tokenizer)
    return pieces, [[texts.describe(one) for one in piece.tokens] for piece in pieces]


def join(tokens):
    return b"".join(bytes(one["bytes"] or ()) for one in tokens)


def test_the_bytes_of_all_tokens_are_those_of_the_text(tokenizer):
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    pieces, described = answer(tokenizer, ids)
    assert "".join(piece.text for piece in pieces) == TEXT
    tokens = [one for some in described for one in some]
    assert len(tokens) == len(ids) > len(TEXT)
    assert join(tokens) == TEXT.encode()
    for piece, some in zip(pieces, described, strict=True):  # each event of a stream has the bytes of its own text
        assert join(some) == piece.text.encode()
    parts = [one for one in tokens if one["token"] == "\N{REPLACEMENT CHARACTER}"]
    assert len(parts) >= 4
    assert all(len(one["bytes"]) < 4 and min(one["bytes"]) >= 0x80 for one in parts)
    assert all(one["token"].encode() == bytes(one["bytes"]) for one in tokens if one not in parts)


def test_likely_tokens_have_the_bytes_of_the_place_where_they_are(tokenizer):
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    _, described = answer(tokenizer, ids, top=ids)
    _, expected = answer(tokenizer, ids)
    wanted = [(one["token"], one["bytes"]) for some in expected for one in some]
    first, *others = [one["top"] for some in described for one in some]
    assert (first[0]["token"], first[0]["bytes"]) == wanted[0]
    for top, again in pairwise(others):
        assert top == again
        assert [(one["token"], one["bytes"]) for one in top][1:] == wanted[1:]


def test_a_special_token_is_no_part_of_the_text_and_has_no_bytes(tokenizer):
    special = tokenizer.convert_tokens_to_ids("<|im_start|>")
    ids = [special, *tokenizer.encode("Hé", add_special_tokens=False), special]
    pieces, described = answer(tokenizer, ids, top=[special])
    tokens = [one for some in described for one in some]
    assert "".join(piece.text for piece in pieces).encode() == join(tokens) == "Hé".encode()
    for one in (tokens[0], tokens[-1], *tokens[1]["top"]):
        assert (one["token"], one["bytes"]) == ("<|im_start|>", None)


def test_an_answer_that_ends_inside_a_character_has_the_bytes_that_there_are(tokenizer):
    ids = tokenizer.encode("Hi 世", add_special_tokens=False)
    pieces, described = answer(tokenizer, ids[:-1])
    joined = join(one for some in described for one in some)
    assert joined == "Hi 世".encode()[: len(joined)]
    assert "".join(piece.text for piece in pieces).startswith("Hi \N{REPLACEMENT CHARACTER}")
