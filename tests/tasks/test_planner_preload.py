"""The planner loads its libraries without starting CUDA, which no process that is forked from it could use then."""

import os
import subprocess
import sys
from pathlib import Path

STAND_IN = "import torch\nif torch.cuda.is_available():\n    torch.cuda._lazy_init()\n"
COUNT = """
import importlib.util, sys, torch
calls = []
torch.cuda.is_available = lambda: True
torch.cuda._lazy_init = lambda: calls.append(1)
from tasks.plan import preload
preload()
from peft.import_utils import is_bnb_available
is_found = importlib.util.find_spec("bitsandbytes") is not None
print(len(calls), "bitsandbytes" in sys.modules, is_found, is_bnb_available())
import bitsandbytes
print(len(calls))
"""


def test_what_starts_cuda_at_import_is_not_loaded(tmp_path):
    package = tmp_path / "bitsandbytes"
    package.mkdir()
    (package / "__init__.py").write_text(STAND_IN)
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-c", COUNT],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == ["0 False True True", "1"]
