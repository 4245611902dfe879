"""Which engine answers requests: transformers, or a vLLM that is installed beside this service."""

import shutil
import sys
from pathlib import Path
from typing import Literal

from jobs.errors import GenerationFailed
from jobs.settings import Settings

EngineName = Literal["transformers", "vllm"]


def find_vllm(settings: Settings) -> str | None:
    """Path of the `vllm` command: TUNEYARD_VLLM's, that on PATH, or that beside this interpreter."""
    if settings.vllm is not None:
        return shutil.which(str(settings.vllm.expanduser()))
    return shutil.which("vllm") or shutil.which(str(Path(sys.executable).parent / "vllm"))


def choose_engine(settings: Settings, vllm: str | None, has_gpu: bool) -> EngineName:
    """Choose by TUNEYARD_GENERATION_ENGINE, and by what there is.

    Args:
        vllm: path of the command, None if it was not found.

    Raises:
        GenerationFailed: vLLM is set and missing.
    """
    if settings.generation_engine == "vllm" and vllm is None:
        named = f"TUNEYARD_VLLM is {settings.vllm}" if settings.vllm else "it is not on PATH"
        raise GenerationFailed(
            f"TUNEYARD_GENERATION_ENGINE is vllm and the command vllm was not found ({named}); set TUNEYARD_VLLM to it"
        )
    if settings.generation_engine == "auto":
        return "vllm" if vllm is not None and has_gpu else "transformers"
    return settings.generation_engine
