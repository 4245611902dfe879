"""A tiny model that calls functions: it has learned one conversation by heart."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sft.chat.named_templates import TEMPLATES
from tests.tiny_models import save_tiny_model

TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "find_hours",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}, "day": {"type": "integer"}}},
        },
    }
]
QUESTION = {"role": "user", "content": "When do the offices open?"}
TEXT = "I look it up."
ARGUMENTS = ({"place": "Zürich", "day": 1}, {"place": "Paris", "day": 2})
RESULTS = ("at eight", "at nine")
ANSWER = "At eight and at nine."


def save_calling_model(folder: Path) -> Path:
    """Save a Llama of two layers that answers `QUESTION` with text and two calls, and their results with `ANSWER`."""
    save_tiny_model("llama", folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"max_position_embeddings": 2048}))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATES["qwen3_nothink"].jinja
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    calls = [{"type": "function", "function": {"name": "find_hours", "arguments": one}} for one in ARGUMENTS]
    asked = {"role": "assistant", "content": TEXT, "tool_calls": calls}
    results = [{"role": "tool", "content": text} for text in RESULTS]
    rows = [
        _make_row(tokenizer, [QUESTION], asked),
        _make_row(tokenizer, [QUESTION, asked, *results], {"role": "assistant", "content": ANSWER}),
    ]
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(500):
        loss = torch.stack([model(input_ids=ids, labels=labels).loss for ids, labels in rows]).sum()
        if loss < 0.02:
            break
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.02
    model.save_pretrained(folder)
    return folder


def _make_row(tokenizer: Any, prompt: list[Any], answer: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, each of shape (1, T)."""
    texts = [
        tokenizer.apply_chat_template(messages, tools=TOOLS, tokenize=False, add_generation_prompt=asks)
        for messages, asks in ((prompt, True), ([*prompt, answer], False))
    ]
    asked = tokenizer(texts[0])["input_ids"]
    learned = tokenizer(texts[1].removeprefix(texts[0]).removesuffix("\n"))["input_ids"]
    ids = torch.tensor([[*asked, *learned]])
    labels = ids.clone()
    labels[0, : len(asked)] = -100
    return ids, labels
