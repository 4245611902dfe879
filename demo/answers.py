"""Prints the answers of a base model and its adapter to held-out questions, with plain transformers and peft.

    python -m demo.answers MODEL_DIR ADAPTER_DIR EVAL_FILE

This file imports nothing of the project: it is what a user of the adapter would write.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

QUESTIONS = 6
MAX_NEW_TOKENS = 60


def main(model_dir: str, adapter_dir: str, eval_file: str) -> None:
    """Print a JSON array of `question, expected, base, adapter`."""
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(adapter_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapter_dir).eval()
    rows = [json.loads(line) for line in Path(eval_file).read_text(encoding="utf-8").splitlines()]
    answers = []
    for row in rows[:: max(1, len(rows) // QUESTIONS)][:QUESTIONS]:
        messages = [{"role": "user", "content": row["instruction"]}]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        answer = {"question": row["instruction"], "expected": row["output"], "key": row.get("key", "")}
        for name in ("base", "adapter"):
            with torch.inference_mode():
                if name == "base":
                    with model.disable_adapter():
                        ids = _generate(model, tokenizer, inputs)
                else:
                    ids = _generate(model, tokenizer, inputs)
            answer[name] = tokenizer.decode(ids, skip_special_tokens=True).strip()
        answers.append(answer)
    print(json.dumps(answers))


def _generate(model: Any, tokenizer: Any, inputs: Any) -> Any:
    output = model.generate(
        **inputs,
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return output[0, inputs["input_ids"].shape[1] :]


if __name__ == "__main__":
    main(*sys.argv[1:])
