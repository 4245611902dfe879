"""The process that answers: started on first use, shared by requests, ended when idle."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from jobs.engine.processes import VARIABLE
from jobs.errors import ContextTooLong, GenerationBusy, GenerationFailed
from jobs.service import generator as generator_module
from jobs.service import pulse, socket_process
from jobs.service.generator import LOCK, Generator, _ProcessEnded
from jobs.settings import Settings
from sft.errors import InvalidPrompt, ModelNotFound, ResourceLimit
from tests.conftest import free_port
from tests.tiny_models import save_tiny_model

GREEDY = {"temperature": 0, "top_p": 1.0, "seed": None, "logprobs": None}
CHAT = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    save_tiny_model("llama", root / "tiny")
    save_tiny_model("qwen2", root / "other")
    return root


@pytest.fixture
def settings(models: Path, tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", model_root=models, dtype="none", generation_idle_seconds=600)


def make_request(base: str = "tiny", **more: Any) -> dict[str, Any]:
    plain = {"base": base, "model": base, "adapter": None, "messages": CHAT, "prompts": None, "n": 1, "max_tokens": 16}
    return {**plain, "stop": [], "sampling": GREEDY, "default_max_tokens": 512, **more}


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Generator]:
    generator = Generator(settings)
    try:
        yield generator
    finally:
        generator.close()


async def ask(generator: Generator, settings: Settings, **request: Any) -> tuple[str, int]:
    """Text of the first answer, and the number of generated tokens."""
    pieces = [piece async for piece in generator.generate(make_request(**request), settings)]
    text = "".join(piece["text"] for piece in pieces if piece.get("index") == 0)
    return text, pieces[-1]["usage"]["completion_tokens"]


def answer_plainly(folder: Path, tokens: int = 16) -> str:
    """The answer of plain transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    inputs = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def find_process(generator: Generator) -> psutil.Process:
    assert generator._process is not None
    return psutil.Process(generator._process.pid)


def test_requests_at_once_for_two_models_are_answered_as_plain_transformers_answers(settings, models):
    wanted = {name: answer_plainly(models / name) for name in ("tiny", "other")}

    async def run() -> None:
        async with running(settings) as generator:
            names = ["tiny", "other", "tiny", "tiny", "other"]
            found = await asyncio.gather(*(ask(generator, settings, base=name) for name in names))
            assert [text for text, _ in found] == [wanted[name] for name in names]
            first = find_process(generator)
            (text, count) = await ask(generator, settings, n=3)
            assert (text, first) == (wanted["tiny"], find_process(generator))
            assert count % 3 == 0
            second = Generator(settings)  # of another process of the same service
            assert (await ask(second, settings))[0] == wanted["tiny"]
            assert second._process is None
        assert not first.is_running()

    asyncio.run(run())


def test_a_model_whose_files_were_replaced_answers_as_it_is_now(settings, models):
    folder = save_tiny_model("llama", models / "changing")

    async def run() -> None:
        async with running(settings) as generator:
            answers = [(await ask(generator, settings, base="changing"))[0]]
            save_tiny_model("qwen2", folder)
            answers.append((await ask(generator, settings, base="changing"))[0])
            assert answers[-1] == answer_plainly(folder)
            (folder / "chat_template.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
            answers.append((await ask(generator, settings, base="changing"))[0])
            assert answers[-1] == answer_plainly(folder)
            assert len({*answers}) == 3

    asyncio.run(run())


def test_what_is_wrong_with_a_request_is_said(settings, models):
    loops = save_tiny_model("llama", models / "loops")
    (loops / "chat_template.jinja").write_text(
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", encoding="utf-8"
    )
    refuses = save_tiny_model("llama", models / "refuses")
    (refuses / "chat_template.jinja").write_text("{{ raise_exception('no system role') }}", encoding="utf-8")
    limited = settings.model_copy(update={"input_step_seconds": 1})

    async def run() -> None:
        async with running(limited) as generator:
            wrong: list[tuple[type[Exception], str, dict[str, Any]]] = [
                (ModelNotFound, "nowhere", {"base": "nowhere"}),
                (InvalidPrompt, "no system role", {"base": "refuses"}),
                (ContextTooLong, "512", {"max_tokens": 510}),
                (ContextTooLong, "512", {"messages": [{"role": "user", "content": "x " * 2000}]}),
                (ResourceLimit, "chat template of loops", {"base": "loops"}),
            ]
            for kind, words, request in wrong:
                with pytest.raises(kind, match=words):
                    await ask(generator, limited, **request)
            assert (await ask(generator, limited))[1] > 0  # the same process goes on

    asyncio.run(run())


def test_a_client_that_hangs_up_frees_its_place(settings):
    async def run() -> None:
        async with running(settings) as generator:
            endless = make_request(max_tokens=400, n=8, sampling={**GREEDY, "temperature": 2.0})
            async with aclosing(generator.generate(endless, settings)) as pieces:
                await anext(pieces)
            start = time.monotonic()
            await ask(generator, settings)
            process = find_process(generator)
            cpu = process.cpu_times().user
            await asyncio.sleep(1)
            assert process.cpu_times().user - cpu < 0.7
            assert time.monotonic() - start < 60

    asyncio.run(run())


def test_beside_a_job_it_answers_the_same_and_computes_a_small_share_of_the_time(settings, models):
    async def run() -> None:
        async with running(settings) as generator:
            await ask(generator, settings)  # the model is loaded
            process = find_process(generator)
            command = [sys.executable, "-c", "import time; time.sleep(600)"]
            job = subprocess.Popen(command, env=os.environ | {VARIABLE: str(uuid4())})
            try:
                await asyncio.sleep(2.5)  # it looks for jobs each second
                spent, began = process.cpu_times(), time.monotonic()
                assert (await ask(generator, settings))[0] == answer
                seconds, after = time.monotonic() - began, process.cpu_times()
                assert after.user + after.system - spent.user - spent.system < 0.5 * seconds
            finally:
                job.kill()
                job.wait()

    answer = answer_plainly(models / "tiny")
    asyncio.run(run())


def test_a_request_that_waits_for_the_registry_keeps_no_other_one_waiting(settings):
    nobody = settings.model_copy(update={"mlflow_tracking_uri": f"http://127.0.0.1:{free_port()}"})

    async def run() -> None:
        async with running(settings) as generator:
            await ask(generator, settings)
            waiting = asyncio.create_task(ask(generator, nobody, adapter="models:/nothing/1"))
            await asyncio.sleep(1)
            assert (await ask(generator, settings))[1] > 0
            assert not waiting.done()
            waiting.cancel()

    asyncio.run(run())


def test_it_ends_when_idle_and_starts_again(settings):
    brief = settings.model_copy(update={"generation_idle_seconds": 3})

    async def run() -> None:
        async with running(brief) as generator:
            answer = await ask(generator, brief)
            process = find_process(generator)
            assert Path(f"/proc/{process.pid}/oom_score_adj").read_text().strip() == "1000"
            await asyncio.to_thread(process.wait, 60)
            assert (brief.home / LOCK).read_text() == ""
            assert await ask(generator, brief) == answer

    asyncio.run(run())


def test_a_killed_process_is_an_error_and_the_next_request_starts_another(settings):
    async def run() -> None:
        async with running(settings) as generator:
            endless = make_request(max_tokens=400, sampling={**GREEDY, "temperature": 2.0, "seed": 3})
            async with aclosing(generator.generate(endless, settings)) as pieces:
                await anext(pieces)
                find_process(generator).kill()
                with pytest.raises(GenerationFailed, match="ended before the answer"):
                    async for _ in pieces:
                        pass
            assert (await ask(generator, settings))[1] > 0

    asyncio.run(run())


def test_a_process_that_stands_still_is_ended_and_another_one_answers(settings, monkeypatch):
    monkeypatch.setattr(generator_module, "LOOK_SECONDS", 0.5)
    monkeypatch.setattr(pulse, "SILENT_SECONDS", 10.0)

    async def run() -> None:
        async with running(settings) as generator:
            answer = await ask(generator, settings)
            process = find_process(generator)
            process.suspend()
            try:
                other = Generator(settings)  # of another process of the service: not its child
                assert await ask(other, settings) == answer
                assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
                other.close()
            finally:
                if process.is_running():
                    process.kill()

    asyncio.run(run())


def test_a_stopped_process_does_not_keep_the_service_from_stopping(settings, monkeypatch):
    monkeypatch.setattr(socket_process, "END_SECONDS", 1.0)

    async def run() -> None:
        async with running(settings) as generator:
            await ask(generator, settings)
            find_process(generator).suspend()
            generator.close()
            assert generator._process is None

    asyncio.run(run())


def test_a_second_process_does_not_get_the_time_of_the_first_again(settings):
    deadlines = []

    class Noting(Ending):
        async def _ask(self, line: bytes, deadline: float) -> AsyncGenerator[dict[str, Any]]:
            deadlines.append(deadline)
            async with aclosing(super()._ask(line, deadline)) as pieces:
                async for piece in pieces:
                    yield piece

    async def run() -> list[dict[str, Any]]:
        return [piece async for piece in Noting(settings, 1).generate({}, settings)]

    assert asyncio.run(run()) == [{"usage": {}}]
    assert len(deadlines) == 2
    assert deadlines[0] == deadlines[1]


class Busy(Generator):
    """Has no room for the first requests."""

    def __init__(self, settings: Settings, refusals: int) -> None:
        super().__init__(settings)
        self.left = refusals

    async def _ask(self, line: bytes, deadline: float) -> AsyncGenerator[dict[str, Any]]:
        self.left -= 1
        if self.left >= 0:
            raise GenerationBusy("a job runs")
        yield {"usage": {}}


class Ending(Generator):
    """Whose process ends before the first piece, so many times."""

    def __init__(self, settings: Settings, ends: int) -> None:
        super().__init__(settings)
        self.left = ends

    async def _ask(self, line: bytes, deadline: float) -> AsyncGenerator[dict[str, Any]]:
        self.left -= 1
        if self.left >= 0:
            raise _ProcessEnded
        yield {"usage": {}}


def test_another_process_is_asked_once_if_one_ends_before_the_first_piece(settings):
    async def run(ends: int) -> list[dict[str, Any]]:
        return [piece async for piece in Ending(settings, ends).generate({}, settings)]

    assert asyncio.run(run(1)) == [{"usage": {}}]
    with pytest.raises(GenerationFailed, match="ended before the answer"):
        asyncio.run(run(2))


def test_without_room_it_says_so_at_once_or_waits_as_asked(settings):
    async def run(wait_seconds: float) -> int:
        generator = Busy(settings, 2)
        return len([piece async for piece in generator.generate({}, settings, wait_seconds)])

    assert asyncio.run(run(60)) == 1
    for seconds in (0, 3):  # less than two pauses
        with pytest.raises(GenerationBusy):
            asyncio.run(run(seconds))
