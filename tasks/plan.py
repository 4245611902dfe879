"""The planner process: plans jobs, so that the API never imports the training libraries.

`python -m tasks.plan` reads a request from stdin and writes the response to stdout. `python -m tasks.plan --serve
SOCKET` imports the libraries once and forks for each connection, until its stdin is closed. A request is one line of
JSON, `{"config": ..., "settings": ..., "device": ...}`; the response is `{"plan": ...}` or `{"error": {"code": ...,
"detail": ...}}`. A request `{"rows": ..., "settings": ...}` asks for the first rows of a file (`tasks.show_rows`).
"""

import argparse
import importlib
import json
import logging
import os
import selectors
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from jobs.engine.processes import measure_held_memory
from jobs.folders import output_folder
from jobs.keeper import end_with_parent
from jobs.network.proxies import bypass_proxies
from jobs.privacy import keep_private
from jobs.results.history import read_past_runs
from jobs.sanitizing.log_lines import keep_lines_whole
from jobs.scratch import use_scratch
from jobs.settings import Settings
from jobs.storage.tables import engine_for
from sft.config import SFTConfig
from sft.errors import TuneyardError
from sft.files.disk import measure_free
from sft.imports import without_collecting
from sft.planning.devices import find_card
from tasks.causes import explain
from tasks.dataset_mix import AnyDataset, DatasetMix, resolve_all
from tasks.limits import building_model
from tasks.model import locate_adapter
from tasks.model_store import locate_model
from tasks.plan_children import PlanChildren
from tasks.show_rows import show_rows
from tasks.tokenize import prepare_for_plan

logger = logging.getLogger(__name__)

PRELOADED = ("sft.training.session", "sft.planning.plan", "dvc.repo", "dvc.api", "psycopg2")
BACKLOG = 64
REGISTRY = "models:"
STARTS_CUDA = "bitsandbytes"
ASK_DRIVER = "PYTORCH_NVML_BASED_CUDA_CHECK"  # how torch counts GPUs without CUDA, which a fork could not use then


def plan(config: SFTConfig, settings: Settings, device: str | None = None) -> dict[str, Any]:
    """Plan a job of this configuration on this machine; its rows are tokenized as in the job, or a sample of many.

    Args:
        device: name of a device to plan for, which need not be here; None for that of this machine.

    Raises:
        TuneyardError: an error that would fail the job, in its data, model or template.
    """
    from sft.planning.duration import PastRun
    from sft.planning.machine import settle_precision
    from sft.planning.plan import make_plan

    target = None if device is None else (device, find_card(device, settings.plan_devices))
    if target is None:
        config = settle_precision(config, settings.home, settings.dtype)
    model = locate_model(config.base_model, settings)
    if config.adapter_path and not config.adapter_path.startswith(REGISTRY):  # one in the registry counts as a new one
        start = locate_adapter(config.adapter_path, settings, settings.home)
        config = config.model_copy(update={"adapter_path": str(start)})
    dataset = resolve_all(config, settings)
    prepared = prepare_for_plan(config, model, dataset, settings)
    runs: list[PastRun] = []
    if settings.database_url:
        runs = [PastRun(**facts) for facts in read_past_runs(engine_for(settings.database_url), config.base_model)]
    with building_model(settings, is_plan=True):
        made = make_plan(
            config, prepared, model, runs, measure_free_disk(config, settings), target, measure_held_memory()
        )
    return {"dataset": describe_dataset(dataset), **made}


def describe_dataset(dataset: AnyDataset) -> dict[str, Any]:
    """Describe the exact dataset version, or the mix of several."""
    if isinstance(dataset, DatasetMix):
        facts = {"name": dataset.reference, "md5": dataset.md5, "rows": dataset.rows, "source": "mix"}
        return {**facts, "revision": None, "commit": None, "held_out_file": None}
    return {
        "name": dataset.name,
        "revision": dataset.revision,
        "commit": dataset.commit,
        "md5": dataset.md5,
        "rows": dataset.rows,
        "held_out_file": dataset.eval_file and dataset.eval_file.name,
        "source": dataset.source,
    }


def measure_free_disk(config: SFTConfig, settings: Settings) -> int:
    """Free bytes on the disk of the job's checkpoints. Raises InvalidConfig for a folder outside the allowed roots."""
    return measure_free(output_folder(settings, config.checkpoint_dir or config.output_dir))


def answer(line: str) -> str:
    """Respond to a request."""
    request = json.loads(line)
    try:
        if "rows" in request:
            return json.dumps({"plan": show_rows(request["rows"], Settings.model_validate(request["settings"]))})
        config = SFTConfig.from_dict(request["config"])
        made = plan(config, Settings.model_validate(request["settings"]), request.get("device"))
        return json.dumps({"plan": made}, allow_nan=False)
    except Exception as error:
        cause = explain(error)
        if cause.code == TuneyardError.code and not isinstance(error, TuneyardError):
            raise
        return json.dumps({"error": {"code": cause.code, "detail": cause.message}})


def preload() -> None:
    """Import the libraries without initializing CUDA: a process that has can't be forked for plans that use it.

    bitsandbytes initializes it at import, and PEFT imports it if it is installed. A plan's own process may import it.
    Libraries that ask torch for GPUs get the driver's answer. For what initializes CUDA nevertheless, see `begin_anew`.
    """
    was, asked = sys.modules.get(STARTS_CUDA), os.environ.get(ASK_DRIVER)
    sys.modules[STARTS_CUDA] = None  # type: ignore[assignment]  # its import fails as if it were not installed
    os.environ[ASK_DRIVER] = "1"
    try:
        with without_collecting():
            for name in PRELOADED:
                importlib.import_module(name)
    finally:
        if was is None:
            del sys.modules[STARTS_CUDA]
        else:
            sys.modules[STARTS_CUDA] = was
        if asked is None:
            del os.environ[ASK_DRIVER]
        else:
            os.environ[ASK_DRIVER] = asked
        _forget_what_is_installed()


def _forget_what_is_installed() -> None:
    """Clear the libraries' cached checks for bitsandbytes."""
    for module in list(sys.modules.values()):
        for name in ("is_bnb_available", "is_bnb_4bit_available", "is_bitsandbytes_available"):
            forget = getattr(vars(module).get(name), "cache_clear", None) if module else None
            if forget:
                forget()


def begin_anew() -> list[str] | None:
    """In a fork: the command that makes the plan in a new process, if CUDA was initialized before the fork."""
    import torch

    return [sys.executable, "-m", "tasks.plan"] if torch.cuda._is_in_bad_fork() else None


def serve(path: str) -> None:
    """Serve connections to a socket until stdin is closed or SIGTERM comes; then running plans end too."""
    with socket.socket(socket.AF_UNIX) as door, selectors.DefaultSelector() as selector:
        door.bind(path)
        door.listen(BACKLOG)  # requests queue from here on, while the libraries are imported
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        preload()
        children = PlanChildren(selector, answer, [door], Path(path).parent, begin_anew)
        selector.register(door, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        try:
            while True:
                ready = [key for key, _ in selector.select()]
                if any(key.fileobj is sys.stdin for key in ready):  # closed: the parent process is gone
                    return
                for key in ready:
                    if key.fileobj is door:
                        children.start(door.accept()[0])
                    else:
                        children.settle(key.data)
        finally:
            children.end_all()


def main() -> None:
    """Run the planner process."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--serve", metavar="SOCKET", type=Path, help="serve requests on this socket")
    options = arguments.parse_args()
    keep_private()
    keep_lines_whole()
    use_scratch()
    bypass_proxies(os.environ)
    if options.serve:
        serve(str(options.serve))
    else:
        end_with_parent()
        sys.stdout.write(answer(sys.stdin.readline()) + "\n")


if __name__ == "__main__":
    main()
