"""A model that is not tiny: its steps take long enough for checkpoints to be some seconds apart."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.tiny_models import build_tokenizer

NAME = "small/llama"
SIZES = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 6}


def save_small_llama(folder: Path) -> None:
    """Save it, random, with the tokenizer of the tiny ones."""
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **ids, **SIZES)).save_pretrained(folder)
