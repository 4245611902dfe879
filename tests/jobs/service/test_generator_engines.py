"""The generation process where vLLM does not start; a stand-in is the driver (`tests/vllm` has a real vLLM)."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from jobs.errors import GenerationFailed
from jobs.settings import Settings
from tests.jobs.service.test_generator import answer_plainly, ask, running
from tests.tiny_models import save_tiny_model

FAILS = "#!/bin/sh\necho 'ValueError: no such architecture'\nexit 1\n"
DRIVER = "#!/bin/sh\necho '0, GPU-1, NVIDIA H100, 9.0, 81559, 80000'\n"

# The generation process, which sees no job: beside one vLLM is not started, and other tests run some.
ALONE = """
from tasks import generation, generation_room

generation_room.list_jobs = list
generation.main()
"""


def place(path: Path, script: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(script, encoding="utf-8")
    path.chmod(0o700)
    return path


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Of a machine that has, as far as its tools say, a vLLM and a GPU."""
    save_tiny_model("llama", tmp_path / "models" / "tiny")
    place(tmp_path / "bin" / "nvidia-smi", DRIVER)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("jobs.service.generator.COMMAND", (sys.executable, "-c", ALONE))
    vllm = place(tmp_path / "bin" / "vllm", FAILS)
    return Settings(home=tmp_path / "home", model_root=tmp_path / "models", dtype="none", vllm=vllm)


def test_transformers_answers_where_vllm_does_not_start_and_the_log_says_why(settings, capfd):
    async def run() -> list[str]:
        async with running(settings) as generator:
            return [(await ask(generator, settings))[0] for _ in range(2)]

    assert asyncio.run(run()) == [answer_plainly(settings.model_root / "tiny")] * 2
    said = [line for line in capfd.readouterr().err.splitlines() if "answered by transformers, not by vLLM" in line]
    assert len(said) == 1
    assert "tiny is answered" in said[0]
    assert "vLLM does not start: ValueError: no such architecture" in said[0]


def test_a_vllm_that_is_set_and_does_not_start_is_an_error_with_the_reason(settings):
    chosen = settings.model_copy(update={"generation_engine": "vllm"})
    missing = chosen.model_copy(update={"vllm": Path("/nowhere/vllm")})

    async def run() -> None:
        async with running(chosen) as generator:
            with pytest.raises(GenerationFailed, match=r"no such architecture.*TUNEYARD_GENERATION_ENGINE is vllm"):
                await ask(generator, chosen)
            with pytest.raises(GenerationFailed, match="TUNEYARD_VLLM is /nowhere/vllm"):
                await ask(generator, missing)
            plain = chosen.model_copy(update={"generation_engine": "transformers"})
            assert (await ask(generator, plain))[1] > 0

    asyncio.run(run())
