"""`python -m tests.bench.generation`: answers beside plain `generate`, in one run. The last line is one JSON object.

The model is the demo's with a LoRA adapter of random weights. Plain `generate` answers one prompt after the other; ours
answers one, and eight at once; with `--vllm COMMAND` (`make vllm-check` installs one for CPUs) so does vLLM. Each
way is run in turn, and its best round counts, so that other load affects all.
"""

import argparse
import asyncio
import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from demo.model import ensure_demo_model
from jobs.settings import Settings
from sft.generation.adapted_model import AdaptedModel
from sft.generation.batches import run_batch
from sft.generation.sampling import Sampling
from sft.generation.sequences import Sequence
from sft.generation.text import TextReader
from sft.generation.vllm_limits import USUAL_RANK
from sft.generation.vllm_wire import build_request, read_line
from tasks.vllm_server import VllmServer, build_command, make_environment

PROMPTS = [f"Question {number}: what should a new colleague know about the office?" for number in range(8)]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    """Measure tokens per second of each way."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--tokens", type=int, default=48, help="of each answer")
    arguments.add_argument("--dtype", choices=DTYPES, default="fp32")
    arguments.add_argument("--vllm", help="the command of a vLLM for CPUs")
    options = arguments.parse_args()
    logging.disable_progress_bar()
    print(json.dumps(measure(options.rounds, options.tokens, DTYPES[options.dtype], options.vllm)))


def measure(rounds: int, tokens: int, dtype: torch.dtype, vllm: str | None) -> dict[str, Any]:
    """Tokens per second of each way, and the ratios to plain `generate`."""
    folder = ensure_demo_model(Settings().model_root)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for text in PROMPTS
    ]
    with tempfile.TemporaryDirectory() as adapter, contextlib.ExitStack() as stack:
        save_adapter(folder, Path(adapter), dtype)
        plain = PeftModel.from_pretrained(load(folder, dtype), adapter).eval()
        ours = AdaptedModel(load(folder, dtype))
        ways: dict[str, tuple[int, Callable[[], list[list[int]]]]] = {
            "plain": (1, lambda: [generate_plainly(plain, tokenizer, prompts[0], tokens)]),
            "one": (1, lambda: generate(ours, Path(adapter), tokenizer, prompts[:1], tokens)),
            "eight": (8, lambda: generate(ours, Path(adapter), tokenizer, prompts, tokens)),
        }
        if vllm:
            server = stack.enter_context(serving(vllm, folder, Path(adapter), dtype))
            ways["vllm_one"] = (1, lambda: ask(server, tokenizer, prompts[:1], tokens))
            ways["vllm_eight"] = (8, lambda: ask(server, tokenizer, prompts, tokens))
        seconds = dict.fromkeys(ways, float("inf"))
        answers = {}
        for _ in range(rounds + 1):  # the first one warms up
            for name, (_, run) in ways.items():
                start = time.perf_counter()
                answers[name] = run()
                seconds[name] = min(seconds[name], time.perf_counter() - start)
    speeds = {name: count * tokens / seconds[name] for name, (count, _) in ways.items()}
    return {
        **{f"{name}_tokens_per_second": round(speed, 1) for name, speed in speeds.items()},
        **{f"{name}_ratio": round(speed / speeds["plain"], 2) for name, speed in speeds.items() if name != "plain"},
        "equal": all(answer[0] == answers["plain"][0] for answer in answers.values()),
        "cores": os.cpu_count(),
    }


def load(folder: Path, dtype: torch.dtype) -> Any:
    """The base model, as plain transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def save_adapter(base: Path, folder: Path, dtype: torch.dtype) -> None:
    """Save an adapter of random weights on all linear layers."""
    torch.manual_seed(0)
    adapted = get_peft_model(load(base, dtype), LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, weight in adapted.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(weight, std=0.01)
    adapted.save_pretrained(folder)


def generate_plainly(model: Any, tokenizer: Any, prompt: list[int], tokens: int) -> list[int]:
    """One answer by plain `generate`, which ends at no token before `tokens`."""
    ids = torch.tensor([prompt])
    made = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    answer: list[int] = made[0, len(prompt) :].tolist()
    return answer


def generate(model: AdaptedModel, adapter: Path, tokenizer: Any, prompts: list[list[int]], tokens: int) -> Any:
    """The answers of the service's way."""
    sequences = [
        Sequence(prompt, tokens, Sampling(temperature=0), 0, (), TextReader(tokenizer), lambda _: None)
        for prompt in prompts
    ]
    with model.using(adapter) as chosen:
        run_batch(chosen, sequences, tokenizer.pad_token_id)
    return [sequence.generated for sequence in sequences]


@contextlib.contextmanager
def serving(vllm: str, base: Path, adapter: Path, dtype: torch.dtype) -> Iterator[VllmServer]:
    """A vLLM server with the adapter, which it calls `adapter`."""
    name = str(dtype).removeprefix("torch.")
    options = ["--enforce-eager", f"--kv-cache-memory-bytes={2**30}", f"--lora-modules=adapter={adapter}"]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        server = VllmServer(folder / "vllm.sock", folder / "vllm.log")
        command = build_command(vllm, base, folder / "vllm.sock", name, USUAL_RANK)
        server.start([*command, *options], make_environment(dict(os.environ), vllm, folder, folder))
        try:
            server.wait_until_ready(lambda: False, 600)
            yield server
        finally:
            server.end()


def ask(server: VllmServer, tokenizer: Any, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """The answers of vLLM, asked as the service asks it."""

    async def generate(client: Any, prompt: list[int]) -> list[int]:
        sequence = Sequence(prompt, tokens, Sampling(temperature=0), 0, (), TextReader(tokenizer), lambda _: None)
        async with client.stream("POST", "/v1/completions", json=build_request(sequence, "adapter")) as response:
            async for line in response.aiter_lines():
                for token, report in read_line(line, None):
                    sequence.take(token, report)
        return sequence.generated

    async def run() -> list[list[int]]:
        async with server.connect() as client:
            return await asyncio.gather(*(generate(client, prompt) for prompt in prompts))

    return asyncio.run(run())


if __name__ == "__main__":
    main()
