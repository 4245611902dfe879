"""What is sent to vLLM and read from it, and which adapters it gets, without vLLM itself (`tests/vllm` has one)."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from sft.generation.sampling import Sampling
from sft.generation.sequences import Piece, Sequence
from sft.generation.text import TextReader
from sft.generation.vllm_limits import VllmUnfit, check_version, find_rank
from sft.generation.vllm_wire import StreamError, build_request, read_line
from tests.tiny_models import build_model, build_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")

TOKENIZER = build_tokenizer()
PROMPT = [5, 6, 7]


def make_sequence(sampling: Sampling, index: int = 0, stops: tuple[str, ...] = ()) -> tuple[Sequence, list[Piece]]:
    """A sequence of at most 8 tokens, and the pieces that it emits."""
    pieces: list[Piece] = []
    reader = TextReader(TOKENIZER, stops)
    return Sequence(PROMPT, 8, sampling, index, {2, 0}, reader, pieces.append), pieces


def write_line(ids: list[int], logprobs: dict[str, Any] | None = None) -> str:
    choice = {"index": 0, "text": "", "token_ids": ids, "logprobs": logprobs, "finish_reason": None}
    return f"data: {json.dumps({'choices': [choice]})}"


def test_a_request_is_token_ids_and_ends_with_our_tokens():
    sequence, _ = make_sequence(Sampling(temperature=0.5, top_p=0.9, seed=-3), index=1)
    assert build_request(sequence, "adapter1") == {
        "model": "adapter1",
        "prompt": PROMPT,
        "max_tokens": 8,
        "temperature": 0.5,
        "top_p": 0.9,
        "ignore_eos": True,
        "stop_token_ids": [0, 2],
        "stream": True,
        "return_token_ids": True,
        "seed": 2**63 - 2,
    }
    plain = build_request(make_sequence(Sampling(logprobs=0))[0], "base")
    assert "seed" not in plain
    assert (plain["logprobs"], plain["return_tokens_as_token_ids"]) == (0, True)


def test_each_copy_of_a_request_has_a_seed_of_its_own():
    seeds = [build_request(make_sequence(Sampling(seed=7), copy)[0], "base")["seed"] for copy in range(3)]
    assert seeds == [7, 8, 9]


def test_tokens_are_read_with_the_most_likely_ones_in_order():
    found = {
        "tokens": ["token_id:9", "token_id:4"],
        "token_logprobs": [-3.0, -0.1],
        "top_logprobs": [{"token_id:9": -3.0, "token_id:4": -0.5, "token_id:8": -1.0}, {"token_id:4": -0.1}],
    }
    assert [*read_line(write_line([9, 4], found), 2)] == [
        (9, {"logprob": -3.0, "top": [(4, -0.5), (8, -1.0)]}),
        (4, {"logprob": -0.1, "top": [(4, -0.1)]}),
    ]
    assert [*read_line(write_line([9, 4]), None)] == [(9, None), (4, None)]
    for line in ("", ": ping", "data: [DONE]", 'data: {"choices": []}'):
        assert [*read_line(line, None)] == []
    with pytest.raises(StreamError, match="out of it"):
        [*read_line('data: {"error": {"message": "out of it"}}', None)]


def test_what_vllm_chose_is_an_answer_as_ours_is():
    text = "Red, green and blue."
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    sequence, pieces = make_sequence(Sampling(temperature=0))
    for token in [*ids[:3], 2]:
        sequence.take(token, None)
    assert "".join(piece.text for piece in pieces) == TOKENIZER.decode(ids[:3])
    assert (sequence.is_finished, pieces[-1].finish, len(sequence.generated)) == (True, "stop", 4)
    stopped, pieces = make_sequence(Sampling(temperature=0), stops=("een",))
    for token in ids:
        if not stopped.is_finished:
            stopped.take(token, None)
    assert "".join(piece.text for piece in pieces) == "Red, gr"


def save_adapter(folder: Path, **options: Any) -> Path:
    torch.manual_seed(0)
    model = build_model("llama", {"vocab_size": len(TOKENIZER), "pad_token_id": 0, "eos_token_id": 0})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, of what no job of ours has
        adapted = get_peft_model(model, LoraConfig(**{"target_modules": ["q_proj", "v_proj"], **options}))
        adapted.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("options", "rank"),
    [
        ({"r": 4}, 64),
        ({"r": 65, "use_rslora": True}, 128),
        ({"r": 8, "rank_pattern": {"q_proj": 100}, "alpha_pattern": {"v_proj": 3}}, 128),
        ({"r": 4, "init_lora_weights": "gaussian", "layers_to_transform": [1]}, 64),
        ({"r": 300}, 320),
    ],
)
def test_an_adapter_has_room_for_its_largest_rank(tmp_path, options, rank):
    assert find_rank(save_adapter(tmp_path / "adapter", **options)) == rank


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "lora_only"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"target_modules": ["embed_tokens"]}, "no LoRA matrix of a linear layer"),
        ({"r": 513}, "513"),
    ],
)
def test_an_adapter_that_vllm_would_refuse_or_load_in_part_is_not_given_to_it(tmp_path, options, reason):
    with pytest.raises(VllmUnfit, match=reason):
        find_rank(save_adapter(tmp_path / "adapter", **options))


def test_saved_embeddings_which_vllm_leaves_out_are_seen(tmp_path):
    model = build_model("llama", {"vocab_size": len(TOKENIZER), "pad_token_id": 0, "eos_token_id": 0})
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path, save_embedding_layers=True)
    with pytest.raises(VllmUnfit, match="no LoRA matrix of a linear layer"):
        find_rank(tmp_path)


def test_settings_that_are_unknown_or_broken_are_refused(tmp_path):
    folder = save_adapter(tmp_path / "adapter")
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text())
    for change, reason in (
        ({"peft_type": "IA3"}, "IA3"),
        ({"use_tomorrows_lora": True}, "use_tomorrows_lora"),
        ({"r": "8"}, "ranks"),
        ({"rank_pattern": {"q_proj": 0}}, "ranks"),
    ):
        path.write_text(json.dumps(settings | change))
        with pytest.raises(VllmUnfit, match=reason):
            find_rank(folder)


def test_an_old_vllm_is_refused():
    for version in ("0.32.0", "0.32.1rc1", "1.0", "dev", "0.40.0.dev1+g1"):
        check_version(version)
    for version in ("0.31.9", "0.9.2"):
        with pytest.raises(VllmUnfit, match=version):
            check_version(version)
