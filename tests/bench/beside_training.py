"""`python -m tests.bench.beside_training`: what a job loses while somebody chats. The last line is one JSON object.

A process that belongs to a job trains the demo's model with LoRA, and the service's process answers eight prompts at a
time in every second window of time. The ratio is that of the job's steps in the windows with and without answers.
"""

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from uuid import uuid4

import psutil

from demo.model import MODEL_NAME, ensure_demo_model
from jobs.engine.processes import VARIABLE
from jobs.service.generator import Generator
from jobs.settings import Settings

GREEDY = {"temperature": 0, "top_p": 1.0, "seed": None, "logprobs": None}
TRAINING = """
import sys, torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad])
ids = torch.randint(0, 1000, (1, 64))
while True:
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print("step", flush=True)
"""


def main() -> None:
    """Measure the ratio."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--windows", type=int, default=4, help="with answers, and as many without")
    arguments.add_argument("--seconds", type=float, default=20, help="of a window")
    options = arguments.parse_args()
    print(json.dumps(asyncio.run(measure(options.windows, options.seconds))))


async def measure(windows: int, seconds: float) -> dict[str, float]:
    """Steps per second of the job with and without answers beside it, and tokens per second of the answers."""
    model = ensure_demo_model(Settings().model_root)
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(home=Path(folder), model_root=model.parent.parent, dtype="none")
        generator = Generator(settings)
        await answer(generator, settings, 4)  # the model is loaded before
        command = [sys.executable, "-W", "ignore", "-c", TRAINING, str(model)]
        environment = os.environ | {VARIABLE: str(uuid4())}
        job = await asyncio.create_subprocess_exec(*command, env=environment, stdout=subprocess.PIPE)
        try:
            steps = Steps(job)
            await steps.wait_for(3)
            counts = {False: 0.0, True: 0.0}
            tokens = 0
            for window in range(2 * windows):
                is_answering = window % 2 == 1
                answering = asyncio.create_task(answer_on(generator, settings)) if is_answering else None
                await asyncio.sleep(1)
                before, start = steps.count, time.monotonic()
                await asyncio.sleep(seconds)
                counts[is_answering] += (steps.count - before) / (time.monotonic() - start) / windows
                if answering:
                    answering.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await answering
                    tokens += answering_tokens.pop()
                await asyncio.sleep(1)
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(job.pid).kill()
            await job.wait()
            generator.close()
    return {
        "alone_steps_per_second": round(counts[False], 2),
        "beside_steps_per_second": round(counts[True], 2),
        "ratio": round(counts[True] / counts[False], 3),
        "answer_tokens_per_second": round(tokens / windows / (seconds + 1), 1),
    }


answering_tokens: list[int] = []


async def answer_on(generator: Generator, settings: Settings) -> None:
    """Ask for answers until cancelled."""
    answering_tokens.append(0)
    while True:
        await answer(generator, settings, 64)


async def answer(generator: Generator, settings: Settings, tokens: int) -> None:
    """Answer eight prompts at once, counting the pieces of text."""
    prompts = [f"Question {number}: what is there to know about the office?" for number in range(8)]
    request = {"base": MODEL_NAME, "model": MODEL_NAME, "adapter": None, "messages": None, "prompts": prompts, "n": 1}
    request |= {"max_tokens": tokens, "stop": [], "sampling": GREEDY, "default_max_tokens": tokens}
    async for piece in generator.generate(request, settings):
        if answering_tokens and piece.get("text"):
            answering_tokens[-1] += 1


class Steps:
    """Counts the steps of the training process."""

    def __init__(self, job: asyncio.subprocess.Process) -> None:
        self.count = 0
        self._job = job
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._job.stdout is not None
        while await self._job.stdout.readline():
            self.count += 1

    async def wait_for(self, count: int) -> None:
        """Wait until so many steps are done."""
        while self.count < count:
            await asyncio.sleep(0.1)


if __name__ == "__main__":
    main()
