"""A tiny tokenizer and a tiny random model, made here: nothing is downloaded."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from sft.chat.named_templates import TEMPLATES

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS = [
    "user assistant system You are a helpful assistant.",
    "What is the capital of France? The capital of France is Paris.",
    "Name three colours. Red, green and blue. Hello there, how are you today?",
] * 4


def save_tiny_llama(folder: Path) -> Path:
    """Save a Llama of two layers with grouped-query attention and a ChatML tokenizer as a model folder."""
    return save_tiny_model("llama", folder)


def save_tiny_model(kind: str, folder: Path) -> Path:
    """Save a random model of two layers of this architecture, with a ChatML tokenizer, as a model folder."""
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    build_model(kind, {"vocab_size": len(tokenizer), "initializer_range": 0.2, **ids}).save_pretrained(folder)
    return folder


def build_model(kind: str, common: dict[str, Any]) -> PreTrainedModel:
    """A random model of `llama`, `qwen2`, `gemma`, `gemma2`, `gemma3` or `gpt2`."""
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    }
    # Gemma shares its embedding with the head and scales it up: drawn as wide as the others' it would start lost.
    gemma = {**common, **sizes, "head_dim": 16, "initializer_range": 0.05}
    match kind:
        case "llama":
            return LlamaForCausalLM(LlamaConfig(**common, **sizes))
        case "qwen2":
            return Qwen2ForCausalLM(Qwen2Config(**common, **sizes))
        case "gemma":
            return GemmaForCausalLM(GemmaConfig(**gemma))
        case "gemma2":
            return Gemma2ForCausalLM(Gemma2Config(**gemma, query_pre_attn_scalar=16))
        case "gemma3":
            return Gemma3ForCausalLM(Gemma3TextConfig(**gemma, query_pre_attn_scalar=16, sliding_window=16))
        case "gpt2":
            no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
            return GPT2LMHeadModel(GPT2Config(**common, **no_dropout, n_embd=64, n_layer=2, n_head=4, n_positions=512))
    raise ValueError(kind)


def measure_loss(model: Any, rows: Iterable[Any]) -> float:
    """Mean negative log-likelihood of the supervised tokens: transformers' forward, one row at a time."""
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            labels = torch.tensor(row["labels"])[1:]
            logits = model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0, :-1].float()
            total += cross_entropy(logits, labels, ignore_index=-100, reduction="sum").item()
            count += int((labels != -100).sum())
    return total / count


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of some 300 tokens; `<|endoftext|>` ends a text, ChatML is the chat template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL_TOKENS[1:]})
    tokenizer.chat_template = TEMPLATES["chatml"].jinja
    return tokenizer


def build_byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, and bytes for others, in the form of Llama 2's: llama.cpp's converter knows it."""
    special = ["<unk>", "<s>", "</s>", *SPECIAL_TOKENS]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(33, 127))]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL_TOKENS})
    tokenizer.chat_template = TEMPLATES["chatml"].jinja
    return tokenizer
