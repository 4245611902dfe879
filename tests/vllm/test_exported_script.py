"""The script of `tuneyard export --to vllm`, run by a real vLLM: its answers beside those of transformers and PEFT."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from sft.exporting.adapter_limits import check_for_vllm
from sft.exporting.vllm_script import SCRIPT, build_command, write_script
from sft.models.model_texts import read_object
from tests.conftest import wait_until
from tests.vllm.conftest import FOUND, Service
from tests.vllm.test_answers import QUESTIONS, TOKENS, answer_plainly

pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")

START_SECONDS = 300.0
STARTED = "Application startup complete"
HERE = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_HOST_IP": "127.0.0.1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def client(service: Service, tmp_path: Path) -> Iterator[httpx.Client]:
    """Of a server that the exported script has started at a private socket."""
    assert FOUND is not None  # `service` skips otherwise
    base, adapter = service.models / "llama", tmp_path / "adapter"
    shutil.copytree(service.adapters["llama"]["first"], adapter)
    for file in base.glob("*token*"):  # an adapter of a job has its tokenizer and generation config
        shutil.copy(file, adapter)
    for name in ("generation_config.json", "chat_template.jinja"):
        shutil.copy(base / name, adapter)
    rank = check_for_vllm(read_object(adapter / "adapter_config.json"))
    write_script(tmp_path / SCRIPT, "support", build_command("support", str(base), "adapter", rank))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    path = os.pathsep.join([str(Path(FOUND).parent), os.environ["PATH"]])
    options = ["--uds", tmp_path / "s", "--dtype", "float32", "--enforce-eager"]
    log_file = tmp_path / "log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            ["sh", tmp_path / SCRIPT, *options],
            env=environment | HERE | {"PATH": path},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        transport = httpx.HTTPTransport(uds=str(tmp_path / "s"))
        with httpx.Client(transport=transport, base_url="http://vllm", timeout=60) as found:
            wait_until(lambda: process.poll() is not None or STARTED in log_file.read_text(), START_SECONDS)
            assert process.poll() is None, log_file.read_text()[-3000:]
            yield found
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_the_exported_command_answers_as_transformers_and_peft(service, client):
    for question in QUESTIONS:
        body = {"model": "support", "messages": [{"role": "user", "content": question}]}
        response = client.post("/v1/chat/completions", json={**body, "temperature": 0, "max_tokens": TOKENS})
        answer = response.raise_for_status().json()["choices"][0]["message"]["content"]
        assert answer == answer_plainly(service, "llama", "first", question)
