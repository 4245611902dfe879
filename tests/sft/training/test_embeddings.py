"""Rows that a model's tables can't hold are found before training, with both numbers."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BioGptConfig,
    BloomConfig,
    CTRLConfig,
    FalconConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MptConfig,
    OPTConfig,
    RobertaConfig,
    XGLMConfig,
)

from sft.data.tokenization import prepare
from sft.errors import InvalidConfig, ModelUnusable
from sft.planning.plan import make_plan
from sft.training.embeddings import measure_capacity

TABLE = 64
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": TABLE}
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": TABLE}
WIDE = {**SIZES, "intermediate_size": 128}
TABLES = {  # a configuration and the longest row its model reads; None for any length
    "gpt2": (GPT2Config(vocab_size=320, **GPT), TABLE),
    "gptj": (GPTJConfig(vocab_size=320, **GPT, rotary_dim=8), TABLE),
    "ctrl": (CTRLConfig(vocab_size=320, **GPT, dff=64), TABLE),
    "opt": (OPTConfig(vocab_size=320, **SIZES, ffn_dim=128, word_embed_proj_dim=64), TABLE),
    "biogpt": (BioGptConfig(vocab_size=320, **WIDE), TABLE),
    "roberta": (RobertaConfig(vocab_size=320, **WIDE, is_decoder=True), TABLE - 2),
    "gpt_neo": (
        GPTNeoConfig(
            vocab_size=320,
            hidden_size=64,
            num_layers=2,
            num_heads=4,
            max_position_embeddings=TABLE,
            attention_types=[[["global", "local"], 1]],
        ),
        TABLE,
    ),
    "mpt": (MptConfig(vocab_size=320, d_model=64, n_layers=2, n_heads=4, max_seq_len=TABLE), TABLE),
    "llama": (LlamaConfig(vocab_size=320, **WIDE), None),
    "gpt_neox": (GPTNeoXConfig(vocab_size=320, **WIDE), None),
    "falcon": (FalconConfig(vocab_size=320, **SIZES), None),
    "bloom": (BloomConfig(vocab_size=320, hidden_size=64, n_layer=2, n_head=4), None),
    "xglm": (
        XGLMConfig(
            vocab_size=320, d_model=64, num_layers=2, attention_heads=4, ffn_dim=128, max_position_embeddings=TABLE
        ),
        None,
    ),
    "mamba": (MambaConfig(vocab_size=320, hidden_size=64, num_hidden_layers=2), None),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", TABLES)
def test_the_longest_row_is_found_by_trying(kind):
    settings, capacity = TABLES[kind]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings)
    declared = getattr(settings, "max_position_embeddings", None)
    assert measure_capacity(model, 3 * TABLE, declared) == measure_capacity(model, 3 * TABLE) == capacity


@pytest.fixture(scope="module")
def short_gpt2(model_path, tmp_path_factory):
    """A GPT-2 with 64 positions and the tiny model's tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "gpt2"
    AutoTokenizer.from_pretrained(model_path).save_pretrained(folder)
    AutoModelForCausalLM.from_config(
        GPT2Config(vocab_size=320, **GPT, bos_token_id=None, eos_token_id=0)
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("fields", [{}, {"packing": True}, {"max_batch_tokens": 400}, {"use_lora": False}], ids=str)
def test_a_row_beyond_the_table_is_refused_and_trains_once_it_is_cut(open_session, short_gpt2, write_rows, fields):
    numbers = " ".join(map(str, range(60)))
    data = write_rows([{"instruction": "Count.", "output": numbers} for _ in range(4)])
    with pytest.raises(
        InvalidConfig, match=r"rows of up to \d+ tokens do not fit .* positions for 64: set max_seq_length"
    ):
        open_session(model=short_gpt2, data=data, validation_split=0.0, max_seq_length=2048, **fields)
    session = open_session(
        model=short_gpt2, data=data, validation_split=0.0, max_seq_length=TABLE, max_steps=1, **fields
    )
    assert session.train()["steps"] == 1


def test_a_held_out_row_counts_too_and_the_plan_says_the_same(make_config, short_gpt2, write_rows, tmp_path):
    short = write_rows([{"instruction": "Count.", "output": "1"} for _ in range(4)])
    long = write_rows([{"instruction": "Count.", "output": " ".join(map(str, range(60)))}], "long.json")
    config = make_config(max_seq_length=2048)
    rows = prepare(config, short_gpt2, short, tmp_path / "cache", long)
    with pytest.raises(InvalidConfig, match="positions for 64"):
        make_plan(config, rows, short_gpt2, [], 10**12)


def test_a_rotary_model_reads_on_with_a_warning(open_session, write_rows):
    data = write_rows([{"instruction": "Count.", "output": " ".join(map(str, range(250)))} for _ in range(2)])
    session = open_session(data=data, validation_split=0.0, max_seq_length=2048)
    assert any(
        warning.endswith("tokens for a model made for 512; set max_seq_length to cut them")
        for warning in session.warnings
    )


@pytest.fixture
def grown(model_path, tmp_path):
    """The tiny model with a tokenizer that has 40 tokens more than it has embeddings."""
    folder = Path(shutil.copytree(model_path, tmp_path / "model"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<extra_{n}>" for n in range(40)], special_tokens=True)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("place", ["train", "eval"])
def test_a_token_without_an_embedding_is_refused(make_config, grown, write_rows, tmp_path, place):
    plain = [{"instruction": "Which one?", "output": "This."} for _ in range(3)]
    odd = [*plain[:2], {"instruction": "Which one?", "output": "It is <extra_39>."}]
    files = [write_rows(odd if place == name else plain, f"{name}.json") for name in ("train", "eval")]
    config = make_config(validation_split=0.0)
    rows = prepare(config, grown, files[0], tmp_path / "cache", files[1])
    with pytest.raises(
        ModelUnusable, match=r"embeddings for 320 tokens, .* tokenizer has 360, and row 3 uses token 359 \('<"
    ):
        make_plan(config, rows, grown, [], 10**12)


def test_more_tokens_than_embeddings_are_only_told_where_no_row_uses_them(open_session, grown, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(grown)
    tokenizer.pad_token = "<extra_7>"
    tokenizer.save_pretrained(grown)
    session = open_session(model=grown, max_steps=1, batch_size=4)
    session.trainer.layout = "padded"  # so that padding reaches the model
    session.train()
    assert session.tokenizer.pad_token_id < 320
    assert session.warnings == [
        "the tokenizer has 360 tokens and the model embeddings for 320; no row uses the others, but a text that does "
        "can't be read"
    ]


def test_a_model_with_more_embeddings_than_tokens_is_as_usual(open_session, model_path, tmp_path):
    folder = Path(shutil.copytree(model_path, tmp_path / "model"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(384)
    model.save_pretrained(folder)
    assert open_session(model=folder).warnings == []
