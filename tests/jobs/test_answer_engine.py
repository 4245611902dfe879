"""Which engine answers, by the setting and by what is installed."""

import sys
from pathlib import Path

import pytest

from jobs.answer_engine import choose_engine, find_vllm
from jobs.errors import GenerationFailed
from jobs.settings import Settings


def place(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    command = folder / "vllm"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o700)
    return str(command)


def test_vllm_is_found_where_it_is_named_on_path_or_beside_python(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "python"))
    settings = Settings(home=tmp_path)
    assert find_vllm(settings) is None
    beside = place(tmp_path / "venv")
    assert find_vllm(settings) == beside
    on_path = place(tmp_path / "bin")
    assert find_vllm(settings) == on_path
    named = place(tmp_path / "other")
    assert find_vllm(settings.model_copy(update={"vllm": Path(named)})) == named
    assert find_vllm(settings.model_copy(update={"vllm": tmp_path / "nothing"})) is None


@pytest.mark.parametrize(
    ("engine", "vllm", "has_gpu", "chosen"),
    [
        ("auto", None, False, "transformers"),
        ("auto", None, True, "transformers"),
        ("auto", "vllm", False, "transformers"),
        ("auto", "vllm", True, "vllm"),
        ("transformers", "vllm", True, "transformers"),
        ("vllm", "vllm", False, "vllm"),
    ],
)
def test_auto_is_vllm_where_it_is_found_and_a_gpu_is_there(tmp_path, engine, vllm, has_gpu, chosen):
    settings = Settings(home=tmp_path, generation_engine=engine)
    assert choose_engine(settings, vllm, has_gpu) == chosen


def test_a_vllm_that_is_set_and_missing_is_named(tmp_path):
    settings = Settings(home=tmp_path, generation_engine="vllm", vllm=Path("/nowhere/vllm"))
    with pytest.raises(GenerationFailed, match=r"TUNEYARD_VLLM is /nowhere/vllm"):
        choose_engine(settings, None, has_gpu=True)
