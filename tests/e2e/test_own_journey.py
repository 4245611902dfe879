"""From rows and a base model in folders of any place to answers of the adapter: three commands, a real service."""

import json
import os
import subprocess
import sys
import time

import pytest

from tests.tiny_models import save_tiny_llama

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

SMALL = ["--epochs", "1", "--batch-size", "4", "--set", "gradient_accumulation_steps=1"]


def test_three_commands_lead_to_answers_of_the_adapter_beside_its_base(make_api, stack, tmp_path, record_property):
    """`serve` is the first one: here its API, started on this stack."""
    model, file = save_tiny_llama(tmp_path / "some place" / "my base"), tmp_path / "greetings of mine.jsonl"
    rows = ({"instruction": f"Greet guest {number}.", "output": f"Welcome, guest {number}!"} for number in range(12))
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    url = str(make_api().start().client.base_url)

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", "cli", *map(str, arguments)],
            env=os.environ | {"TUNEYARD_URL": url, "TUNEYARD_HOME": str(stack.home)},
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
        )
        assert done.returncode == 0, done.stderr
        return done

    began = time.monotonic()
    trained = run("submit", "--model", model, "--dataset", file, "--name", "own-journey", "--watch", *SMALL)
    chatted = run("chat", "own-journey", "Greet guest 3.", "--base", "--max-tokens", "4", "--wait", "200", "--json")
    record_property("seconds", round(time.monotonic() - began, 1))

    assert "base model local/my-base: copied from" in trained.stderr
    assert "greetings-of-mine@v1" in trained.stderr
    answers = json.loads(chatted.stdout)["answers"]
    assert [*answers] == ["local/my-base", "own-journey@1"]
    assert all(isinstance(answer, str) for answer in answers.values())
