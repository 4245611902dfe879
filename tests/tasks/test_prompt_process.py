"""The processes that write prompts: one that stands still or takes long holds up nobody else."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs.errors import GenerationFailed
from jobs.service import pulse
from jobs.settings import Settings
from tasks import prompt_process
from tasks.prompt_process import PromptProcesses
from tests.tiny_models import save_tiny_model

LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture
def processes() -> Iterator[PromptProcesses]:
    made = PromptProcesses()
    yield made
    made.close()


def make_request(home: Path, **more: Any) -> dict[str, Any]:
    settings = Settings(home=home, input_step_seconds=600).model_dump(mode="json")
    return {"settings": settings, "messages": [{"role": "user", "content": "Hello"}], **more}


def find_children() -> list[psutil.Process]:
    return [one for one in psutil.Process().children() if "tasks.prompts" in one.cmdline()]


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_process_that_stands_still_or_is_killed_is_replaced_and_asked_again(
    processes, model, tmp_path, monkeypatch, is_killed
):
    monkeypatch.setattr(prompt_process, "LOOK_SECONDS", 0.5)
    monkeypatch.setattr(pulse, "SILENT_SECONDS", 600 if is_killed else 5)
    request = make_request(tmp_path)
    wanted = processes.write("tiny", model, request)
    (child,) = find_children()
    child.suspend()
    found: list[Any] = []
    # More than a pipe holds: it is stopped before it has read the request.
    long = make_request(tmp_path, prompts=["Hello " * 20_000], messages=None)
    asking = threading.Thread(target=lambda: found.append(processes.write("tiny", model, long)))
    asking.start()
    if is_killed:
        child.kill()
    asking.join(120)
    assert len(found[0].ids[0]) > 20_000
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert processes.write("tiny", model, request) == wanted


def test_a_template_that_takes_long_holds_up_no_other_model_and_not_the_end(processes, model, tmp_path):
    slow = save_tiny_model("llama", tmp_path / "slow")
    (slow / "chat_template.jinja").write_text(LOOP, encoding="utf-8")
    request = make_request(tmp_path)
    processes.write("tiny", model, request)
    problems: list[Exception] = []

    def ask_slow() -> None:
        try:
            processes.write("slow", slow, request)
        except GenerationFailed as error:
            problems.append(error)

    asking = [threading.Thread(target=ask_slow) for _ in range(3)]
    for thread in asking:
        thread.start()
    for _ in range(3):
        assert processes.write("tiny", model, request).ids
    assert [thread.is_alive() for thread in asking] == [True] * 3
    processes.close()
    for thread in asking:
        thread.join(60)
    assert len(problems) == 3
    assert not find_children()
