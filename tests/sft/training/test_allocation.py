"""Memory that tensors let go is given back where activations are recomputed."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sft.config import SFTConfig
from sft.training import arguments

# Of tensors of 8 MB every other one is let go. A larger block that was freed before has raised glibc's own limit.
GAPS = """
import psutil, torch
from sft.training.allocation import return_large_blocks
del (wide := [torch.ones(2**22)])[:]
if {asked}: assert return_large_blocks()
kept = [torch.ones(2**21) for _ in range(40)]
before = psutil.Process().memory_info().rss
del kept[::2]
print(before - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the setting is glibc's")
def test_freed_tensors_between_others_are_given_back() -> None:
    returned = {}
    for asked in (False, True):
        done = subprocess.run(
            [sys.executable, "-c", GAPS.format(asked=asked)], check=True, capture_output=True, text=True
        )
        returned[asked] = int(done.stdout)
    assert returned[False] < 20 * 2**20
    assert returned[True] > 150 * 2**20


def test_it_is_asked_for_where_a_cpu_recomputes(make_config: Callable[..., SFTConfig], monkeypatch: Any) -> None:
    asked: list[str] = []
    monkeypatch.setattr(arguments, "return_large_blocks", lambda: asked.append(kind))
    for kind, wish in (("cpu", False), ("cuda", True), ("cpu", True)):
        config = make_config(gradient_checkpointing=wish)
        found = arguments.settle_checkpointing(config, pytest.fail, "documents", None, torch.float32, kind)  # type: ignore[arg-type]
        assert found == wish
    assert asked == ["cpu"]
