"""Generates with llama-cpp-python in a process of its own: 16 tokens, the likeliest each time."""

import itertools
import json
import sys

from llama_cpp import Llama

given = json.load(sys.stdin)
model = Llama(given["model"], lora_path=given["lora"] or None, n_ctx=256, n_gpu_layers=0, verbose=False)
prompt = model.tokenize(given["text"].encode(), add_bos=True, special=True)
tokens = list(itertools.islice(model.generate(prompt, top_k=1, temp=0.0, repeat_penalty=1.0), 16))
sys.stdout.write(json.dumps({"prompt": prompt, "tokens": tokens}) + "\n")
