"""Answers of a real vLLM beside those of plain transformers and PEFT, which the tests load themselves, in fp32."""

import asyncio
import math
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import psutil
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from jobs.engine.processes import VARIABLE
from jobs.errors import GenerationBusy, GenerationFailed
from jobs.service.generator import LOCK
from tests.conftest import is_gone, wait_until
from tests.vllm.conftest import Service

pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")

TOKENS = 24
WAIT_SECONDS = 300.0  # while other tests run jobs on this machine
GREEDY = {"temperature": 0, "top_p": 1.0, "seed": None, "logprobs": None}
QUESTIONS = ["What is the capital of France?", "Name three colours.", "Hello there"]


def make_request(service: Service, base: str, adapter: str | None = None, **more: Any) -> dict[str, Any]:
    """A request for an answer to the first question."""
    request = {
        "base": base,
        "model": adapter or base,
        "adapter": None,
        "messages": [{"role": "user", "content": QUESTIONS[0]}],
        "prompts": None,
        "n": 1,
        "max_tokens": TOKENS,
        "stop": [],
        "sampling": GREEDY,
        "default_max_tokens": 512,
    }
    if adapter:
        folder = service.adapters[base][adapter]
        step = int(folder.name.rsplit("-", 1)[-1])
        request |= {
            "adapter": f"{base}-{adapter}",
            "checkpoint": {"job_id": str(UUID(int=0)), "step": step, "folder": str(folder)},
        }
    return {**request, **more}


async def stream(service: Service, *request: Any, **more: Any) -> AsyncIterator[dict[str, Any]]:
    asked = make_request(service, *request, **more)
    async with aclosing(service.owner.generate(asked, service.settings, WAIT_SECONDS)) as pieces:
        async for piece in pieces:
            yield piece


async def ask(service: Service, *request: Any, **more: Any) -> list[str]:
    """The texts of the answers."""
    texts: dict[int, str] = {}
    async for piece in stream(service, *request, **more):
        if "index" in piece:
            texts[piece["index"]] = texts.get(piece["index"], "") + piece["text"]
    return [texts[index] for index in sorted(texts)]


def load(service: Service, base: str, adapter: str | None) -> Any:
    model = AutoModelForCausalLM.from_pretrained(service.models / base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, service.adapters[base][adapter]).eval() if adapter else model


def answer_plainly(service: Service, base: str, adapter: str | None, question: str = QUESTIONS[0]) -> str:
    """The answer of plain transformers and PEFT."""
    tokenizer = AutoTokenizer.from_pretrained(service.models / base)
    chat = [{"role": "user", "content": question}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    made = load(service, base, adapter).generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    return str(tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def find_process(service: Service) -> psutil.Process:
    """The generation process."""
    assert service.owner._process is not None
    return psutil.Process(service.owner._process.pid)


def find_vllm(service: Service) -> list[psutil.Process]:
    """The processes of vLLM, the keeper included."""
    below = find_process(service).children(recursive=True)
    return [one for one in below if "tasks.prompts" not in one.cmdline()]


@pytest.mark.parametrize("base", ["llama", "qwen2"])
def test_answers_are_those_of_transformers_and_peft_token_for_token(service, base):
    names = [None, "first", "second", "patterns"]
    wanted = {(name, asked): answer_plainly(service, base, name, asked) for name in names for asked in QUESTIONS}
    assert len(set(wanted.values())) == len(wanted)

    async def run() -> dict[Any, str]:
        found = await asyncio.gather(
            *(ask(service, base, name, messages=[{"role": "user", "content": asked}]) for name, asked in wanted)
        )
        return dict(zip(wanted, (texts[0] for texts in found), strict=True))

    assert asyncio.run(run()) == wanted
    assert find_vllm(service)


def test_adapters_that_vllm_does_not_take_are_answered_all_the_same(service):
    for name in ("dora", "whole"):
        assert asyncio.run(ask(service, "llama", name)) == [answer_plainly(service, "llama", name)]
    assert not find_vllm(service)


def test_n_seed_stop_and_streaming(service):
    drawn = {"n": 3, "sampling": {**GREEDY, "temperature": 1.5, "seed": 5}}
    several = asyncio.run(ask(service, "llama", **drawn))
    assert len(set(several)) == 3
    assert asyncio.run(ask(service, "llama", **drawn)) == several
    free = {"n": 2, "sampling": {**GREEDY, "temperature": 1.5}}
    assert asyncio.run(ask(service, "llama", **free)) != asyncio.run(ask(service, "llama", **free))

    (plain,) = asyncio.run(ask(service, "llama", "first"))
    stop = plain[5:8]
    assert asyncio.run(ask(service, "llama", "first", stop=[stop])) == [plain.partition(stop)[0]]

    async def collect() -> list[dict[str, Any]]:
        return [piece async for piece in stream(service, "llama", "first")]

    pieces = asyncio.run(collect())
    assert len(pieces) > 5
    assert "".join(piece["text"] for piece in pieces[:-1]) == plain
    assert pieces[-2]["finish"] in ("stop", "length")
    assert pieces[-1]["usage"]["completion_tokens"] <= TOKENS


def test_log_probabilities_are_those_of_the_model(service):
    async def collect() -> list[dict[str, Any]]:
        asked = {"temperature": 0, "top_p": 1.0, "seed": None, "logprobs": 3}
        return [
            piece async for piece in stream(service, "llama", "first", prompts=["hello"], messages=None, sampling=asked)
        ]

    pieces = asyncio.run(collect())
    tokens = [token for piece in pieces for token in piece.get("tokens", ())]
    tokenizer = AutoTokenizer.from_pretrained(service.models / "llama")
    ids = torch.tensor([tokenizer("hello")["input_ids"]])
    model = load(service, "llama", "first")
    for token in tokens:
        values, places = torch.log_softmax(model(input_ids=ids).logits[0, -1].float(), -1).topk(3)
        assert token["token"] == tokenizer.decode(places[:1])
        assert token["logprob"] == pytest.approx(float(values[0]), abs=1e-3)
        assert [one["logprob"] for one in token["top"]] == pytest.approx(values.tolist(), abs=1e-3)
        assert [one["token"] for one in token["top"]] == [tokenizer.decode([place]) for place in places]
        ids = torch.cat([ids, places[:1, None]], 1)
    assert len(tokens) >= TOKENS - 1


def test_a_client_that_hangs_up_ends_its_answer_in_vllm(service):
    async def run() -> None:
        asked = {"temperature": 2.0, "top_p": 1.0, "seed": None, "logprobs": None}
        async with aclosing(stream(service, "llama", n=8, max_tokens=450, sampling=asked)) as pieces:
            await anext(pieces)
        sockets = Path((service.settings.home / LOCK).read_text()).parent
        transport = httpx.HTTPTransport(uds=str(sockets / "vllm.sock"))
        with httpx.Client(transport=transport, base_url="http://vllm") as client:
            wait_until(lambda: "vllm:num_requests_running" in client.get("/metrics").text, 30)
            wait_until(lambda: count_running(client.get("/metrics").text) == 0, 30)
        assert await ask(service, "llama")

    asyncio.run(run())


def count_running(metrics: str) -> float:
    """The requests that vLLM computes."""
    lines = [line for line in metrics.splitlines() if line.startswith("vllm:num_requests_running")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines) if lines else math.inf


def test_its_folder_is_private_and_it_listens_on_no_port(service):
    asyncio.run(ask(service, "llama"))
    folder = Path((service.settings.home / LOCK).read_text()).parent
    assert folder.stat().st_mode & 0o077 == 0
    for process in find_vllm(service):
        for one in process.net_connections("inet"):
            assert one.status != psutil.CONN_LISTEN or one.laddr.ip in ("127.0.0.1", "::1"), (process, one)
    assert not any(name.startswith(("TUNEYARD_", "MLFLOW_")) for name in find_vllm(service)[-1].environ())


def test_a_generation_process_that_is_killed_leaves_no_vllm(service):
    asyncio.run(ask(service, "llama"))
    left = find_vllm(service)
    assert len(left) > 2
    find_process(service).kill()
    wait_until(lambda: all(map(is_gone, left)), 30)


def test_a_vllm_that_dies_is_an_error_and_the_next_request_starts_another(service):
    async def run() -> None:
        async with aclosing(stream(service, "llama", max_tokens=450, n=8)) as pieces:
            await anext(pieces)
            (engine,) = [one for one in find_vllm(service) if "EngineCore" in " ".join(one.cmdline())]
            engine.kill()
            with pytest.raises(GenerationFailed, match="vLLM ended before the answer"):
                async for _ in pieces:
                    pass
        assert await ask(service, "llama")

    asyncio.run(run())


def test_a_job_that_starts_ends_vllm_and_the_answers(service):
    async def run() -> None:
        asked = {"temperature": 2.0, "top_p": 1.0, "seed": None, "logprobs": None}
        async with aclosing(stream(service, "llama", n=8, max_tokens=450, sampling=asked)) as pieces:
            await anext(pieces)
            left = find_vllm(service)
            command = [sys.executable, "-c", "import time; time.sleep(600)"]
            job = subprocess.Popen(command, env=os.environ | {VARIABLE: str(uuid4())})
            try:
                with pytest.raises(GenerationBusy):
                    async for _ in pieces:
                        pass
                wait_until(lambda: all(map(is_gone, left)), 30)
                with pytest.raises(GenerationBusy):
                    await anext(service.owner.generate(make_request(service, "llama"), service.settings))
            finally:
                job.kill()
                job.wait()

    asyncio.run(run())
