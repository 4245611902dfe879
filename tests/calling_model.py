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
LOSS = 0.02  # of what is known by heart
ANSWER = "At eight and at nine."


def save_calling_model(folder: Path) -> Path:
    """Save a Llama of two layers that answers `QUESTION` with text and two calls, and their results with `ANSWER`."""
    calls = [{"type": "function", "function": {"name": "find_hours", "arguments": one}} for one in ARGUMENTS]
    asked = {"role": "assistant", "content": TEXT, "tool_calls": calls}
    results = [{"role": "tool", "content": text} for text in RESULTS]
    written = "".join(f"\n<tool_call>\n{write_call('find_hours', one)}\n</tool_call>" for one in ARGUMENTS)
    return save_model_that_says(folder, [([QUESTION], TEXT + written), ([QUESTION, asked, *results], ANSWER)])


def write_call(name: str, arguments: dict[str, Any]) -> str:
    """A call as it stands within `<tool_call>`."""
    return json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)


def save_model_that_says(folder: Path, rows: list[tuple[list[Any], str]]) -> Path:
    """Save a Llama of two layers that has learned by heart what to answer to each chat with `TOOLS`."""
    save_tiny_model("llama", folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"max_position_embeddings": 2048}))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATES["qwen3_nothink"].jinja
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    pairs = [_make_row(tokenizer, chat, answer) for chat, answer in rows]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a second one gains nothing here, and loses much on a busy machine
    try:
        assert _learn(model, pairs) < LOSS
    finally:
        torch.set_num_threads(threads)
    model.save_pretrained(folder)
    return folder


def _learn(model: Any, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Train until the sum of the rows' losses is below `LOSS`; returns the last one."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(500):
        loss = torch.stack([model(input_ids=ids, labels=labels).loss for ids, labels in pairs]).sum()
        if loss < LOSS:
            break
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def _make_row(tokenizer: Any, chat: list[Any], answer: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, each of shape (1, T)."""
    asked = tokenizer.apply_chat_template(chat, tools=TOOLS, add_generation_prompt=True, return_dict=True)["input_ids"]
    ids = torch.tensor([[*asked, *tokenizer(answer + "<|im_end|>")["input_ids"]]])
    labels = ids.clone()
    labels[0, : len(asked)] = -100
    return ids, labels
