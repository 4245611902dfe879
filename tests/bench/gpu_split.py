"""The cases of `make gpu-check` that take two devices: the trainers are in processes of their own."""

import time
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from safetensors.torch import save_file

from sft.adapting.adapter_files import WEIGHTS
from sft.adapting.adapters import plan_adapter
from sft.config import SFTConfig
from sft.data.tokenization import prepare
from sft.models.loading import quiet_transformers
from sft.models.model_class import build_empty
from sft.training.layout import choose_document_attention
from tests.bench.gpu_cases import Case, Rows
from tests.bench.gpu_runs import build_config, build_counter, draw, plan_peak


def run_case(case: Case, rows: Rows, model_path: Path, file: Path, folder: Path, steps: int, warm: int) -> Any:
    """`gpu_runs.run_case`, told by the events of the first process. FLOPs and peak are those of one device."""
    from sft.devices.launcher import DistributedSession

    config = build_config(case, rows, steps)
    prepared = prepare(config, model_path, file, folder / "rows")
    start = save_start(config, model_path, folder / "start")
    told: list[tuple[float, str, dict[str, Any]]] = []
    session = DistributedSession(
        config.model_copy(update={"adapter_path": str(start)}),
        prepared,
        model_path,
        folder / "out",
        lambda name, values: told.append((time.perf_counter(), name, values)),
    )
    try:
        peak = session.train()["peak_memory_bytes"]
    finally:
        session.close()
    [(began, begin)] = [(at, values) for at, name, values in told if name == "begin"]
    ends = [(at - began, values) for at, name, values in told if name == "step"]
    seconds = ends[-1][0] - ends[warm - 1][0]
    # Tokens up to a step, from their mean per second since the beginning.
    until_warm, until_end = (at * values["tokens_per_second"] for at, values in (ends[warm - 1], ends[-1]))
    speed = (until_end - until_warm) / seconds
    tokens, flops = build_counter(case, build_empty(model_path))(list(prepared.load_train()))
    result = {
        "model": case.model,
        "layout": begin["layout"],
        "attention": choose_document_attention(begin["device"].partition(":")[0]),
        "tokens_per_second": round(speed, 1),
        "flops_per_second": speed * flops / tokens / config.num_devices,
        "peak_bytes": peak,
        "losses": [round(values["loss"], 6) for _, values in ends],
    }
    if case.is_planned:
        result["planned_bytes"] = plan_peak(config, prepared, model_path, folder)
    return result


def save_start(config: SFTConfig, model_path: Path, folder: Path) -> Path:
    """Save the adapter that `gpu_runs.draw_adapters` makes: another process can't be given one otherwise."""
    settings = plan_adapter(build_empty(model_path), config).settings
    folder.mkdir()
    settings.save_pretrained(folder)
    with quiet_transformers():
        empty = get_peft_model(build_empty(model_path), settings, low_cpu_mem_usage=True)
    weights = {
        name.replace(".default.", "."): draw(name, weight.shape) if "lora_A" in name else torch.zeros(weight.shape)
        for name, weight in empty.named_parameters()
        if "lora_" in name
    }
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    return folder
