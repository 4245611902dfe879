"""Writes the command that serves an adapter, or a merged model, with vLLM.

The options are those of https://docs.vllm.ai/en/latest/cli/serve/ and https://docs.vllm.ai/en/latest/features/lora.html.
"""

import shlex
from pathlib import Path

SCRIPT = "serve.sh"


def build_command(name: str, base: str | None, folder: str, rank: int | None) -> list[str]:
    """The command.

    Args:
        name: what requests call the adapter (`model`).
        base: path or Hub id of the base model; None if `folder` holds a whole model.
        folder: of the adapter or the model, with its tokenizer, chat template and generation config. Those of the base
            model may end answers with another token than the adapter was trained on.
        rank: `--max-lora-rank` of an adapter.
    """
    if base is None:
        return ["vllm", "serve", folder, "--served-model-name", name]
    lora = ["--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", f"{name}={folder}"]
    return ["vllm", "serve", base, *lora, "--tokenizer", folder, "--generation-config", folder]


def write_script(path: Path, title: str, command: list[str]) -> None:
    """Write a shell script that runs the command in the script's folder, with further arguments added."""
    lines = ["#!/bin/sh", f"# {' '.join(title.split())}", 'cd "$(dirname "$0")" || exit 1']
    path.write_text("\n".join([*lines, f'exec {shlex.join(command)} "$@"', ""]), encoding="utf-8")
