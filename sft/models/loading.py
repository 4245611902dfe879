"""Finds base models and tokenizers by name and loads them in the dtype that is fastest on this machine."""

import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sft.config import SFTConfig
from sft.errors import InvalidConfig, ModelNotFound, ModelUnusable
from sft.files.places import find_way_out, follow
from sft.models.hardware import check_qlora, inspect_hardware
from sft.models.model_class import find_model_class
from sft.models.model_settings import read_settings
from sft.models.model_texts import check_texts
from sft.models.placement import choose_gpu
from sft.models.tokenizer_class import find_tokenizer_class
from sft.models.tokenizer_files import check_tokenizer
from sft.models.weight_names import check_loading, check_stored_names
from sft.models.weights import check_weights, raising_unusable

if TYPE_CHECKING:
    from logging import LogRecord

    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HUB_TIMEOUT_SECONDS = 3.0
HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "README.md")
DTYPES = {"none": "float32", "bf16": "bfloat16", "fp16": "float16"}  # mixed_precision: torch's name
BF16_GAIN = 0.9  # bf16 must take less than this share of fp32's time to be worth its rounding


class DtypeSupport(NamedTuple):
    """What the choice of a dtype depends on. `measure_gemm` returns seconds per product in fp32 and in bf16."""

    has_cuda: bool
    has_cuda_bf16: bool
    measure_gemm: Callable[[], tuple[float, float]]


def find_model(name: str, model_root: Path, allowed_roots: Sequence[Path] = ()) -> Path:
    """Find the folder of a base model: below the model root, in the local Hugging Face cache, or from the Hub.

    Args:
        allowed_roots: folders besides the model root that links in it may point to.

    Raises:
        ModelUnusable: one of its text files is too large.
        ModelNotFound: it is in none of these; the message lists the places searched. Without a reachable Hub this
            takes a few seconds.
    """
    root = Path(os.path.normpath(model_root.absolute()))
    folder = Path(os.path.normpath(root / name))
    if not folder.is_relative_to(root) or folder == root or "\0" in name:
        raise ModelNotFound(f"base_model {name!r} must be a model id or a path below the model root {root}")
    _check_links(name, folder, root, allowed_roots)
    if (folder / "config.json").is_file():
        check_texts(folder, f"base_model {name!r}")
        return folder
    state = "has no config.json" if folder.is_dir() else "does not exist"
    looked_at = [f"the model root ({folder} {state})"]
    for place, look in (("the Hugging Face cache", _find_in_cache), ("the Hub", _fetch_from_hub)):
        try:
            return look(name)
        except _list_hub_errors() as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            looked_at.append(f"{place} ({reason})")
    raise ModelNotFound(
        f"base_model {name!r} was not found; looked in " + ", ".join(looked_at) + ". "
        f"Put its files into {folder} or name another model"
    )


def load_tokenizer(path: Path) -> "PreTrainedTokenizerBase":
    """Load the model's fast tokenizer; without a pad token it pads with its end-of-sequence or unknown token.

    Raises:
        ModelUnusable: the folder has no readable tokenizer.
        InvalidConfig: the tokenizer has no fast version, which maps tokens to characters.
    """
    tokenizer_class: Any = find_tokenizer_class(path)
    if tokenizer_class is None:
        from transformers import AutoTokenizer

        tokenizer_class = AutoTokenizer
    try:
        with raising_unusable(f"the tokenizer of base_model {path.name}", path):
            tokenizer: PreTrainedTokenizerBase = tokenizer_class.from_pretrained(path, trust_remote_code=False)
            tokenizer.encode("Hello", add_special_tokens=False)  # some settings are read only now
    except ModelUnusable:
        check_tokenizer(path, f"base_model {path.name}")  # a missing or damaged file is a plainer reason
        raise
    if not tokenizer.is_fast:
        raise InvalidConfig(f"base_model {path.name} has no fast tokenizer (tokenizer.json), which training needs")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def load_model(path: Path, config: SFTConfig, dtype: "torch.dtype | None" = None) -> "PreTrainedModel":
    """Load the model from safetensors only, without running code of the model: frozen weights in the compute dtype.

    Full fine-tuning keeps its weights in fp32. With `shard_model` this process loads its share of the layers.
    `dtype` is the result of `choose_dtype`, if the caller has it already.

    Raises:
        InvalidConfig: this machine does not support QLoRA or the dtype, or shard_model not the model.
        ModelUnusable: files of the model are missing, damaged or of an unsupported kind.
        ModelNotSupported: the model does not generate text.
    """
    import torch
    from transformers import GenerationConfig

    from sft.models.model_class import build_empty
    from sft.models.sharding import join_processes, load_sharded

    subject = f"base_model {config.base_model}"
    check_weights(path, subject)
    dtype = dtype or choose_dtype(config.mixed_precision, inspect_dtypes())
    options: dict[str, Any] = {"dtype": dtype if config.use_lora else torch.float32}
    options["generation_config"] = GenerationConfig()  # the published one may be invalid
    if config.use_qlora:
        options["quantization_config"] = _build_quantization(dtype)
    if torch.cuda.is_available():
        options["device_map"] = {"": choose_gpu(config.device_map)}
    empty = build_empty(path, subject)
    notes = check_stored_names(empty, path, subject)  # before memory is allocated for wrong sizes
    options |= {"config": read_settings(path, subject), "use_safetensors": True}
    with raising_unusable(subject, path), quiet_transformers():
        if config.shard_model:
            model, loading = load_sharded(type(empty), path, join_processes(), **options)
        else:
            model, loading = find_model_class(empty.config, path).from_pretrained(
                path, trust_remote_code=False, output_loading_info=True, **options
            )
    check_loading(loading, subject)
    model.stored_notes = notes
    loaded: PreTrainedModel = model
    return loaded


def list_unread_weights(model: "PreTrainedModel") -> list[str]:
    """Warnings about weights in a loaded model's files that are not used, or not as its configuration says."""
    return list(getattr(model, "stored_notes", []))


def choose_dtype(mixed_precision: str, support: DtypeSupport) -> "torch.dtype":
    """Choose the compute dtype. `auto` means bf16 (else fp16) on CUDA, and on a CPU the one measured to be faster.

    Raises:
        InvalidConfig: the machine does not support the dtype asked for.
    """
    import torch

    if mixed_precision == "fp16" and not support.has_cuda:
        raise InvalidConfig("mixed_precision fp16 needs a CUDA device and there is none; use bf16, none or auto")
    if mixed_precision == "bf16" and support.has_cuda and not support.has_cuda_bf16:
        raise InvalidConfig("mixed_precision bf16 is not supported by this CUDA device; use fp16, none or auto")
    if mixed_precision != "auto":
        chosen: torch.dtype = getattr(torch, DTYPES[mixed_precision])
        return chosen
    if support.has_cuda:
        return torch.bfloat16 if support.has_cuda_bf16 else torch.float16
    fp32_seconds, bf16_seconds = support.measure_gemm()
    return torch.bfloat16 if bf16_seconds < BF16_GAIN * fp32_seconds else torch.float32


def inspect_dtypes() -> DtypeSupport:
    """What the machine this runs on supports."""
    import torch

    has_cuda = torch.cuda.is_available()
    return DtypeSupport(has_cuda, has_cuda and torch.cuda.is_bf16_supported(including_emulation=False), measure_gemm)


def measure_gemm(size: int = 768, repeats: int = 5) -> tuple[float, float]:
    """Seconds of one `size` x `size` matrix product on the CPU, in fp32 and in bf16: the best of `repeats`.

    The two alternate, so that other load affects both alike.
    """
    import torch

    pairs = [(time_product(torch.float32, size, 1), time_product(torch.bfloat16, size, 1)) for _ in range(repeats)]
    return min(fp32 for fp32, _ in pairs), min(bf16 for _, bf16 in pairs)


def time_product(dtype: "torch.dtype", size: int, repeats: int, device: str = "cpu") -> float:
    """Seconds of one `size` x `size` matrix product: the best of `repeats`."""
    import torch

    left, right = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    seconds = []
    for _ in range(repeats + 1):  # the first one warms up
        start = time.perf_counter()
        _ = left @ right
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def name_precision(dtype: "torch.dtype | str") -> str:
    """The `mixed_precision` for this dtype."""
    wanted = str(dtype).removeprefix("torch.")
    return next(precision for precision, name in DTYPES.items() if name == wanted)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence progress bars, deprecation warnings, and the table of unused weights.

    `sft.models.weight_names` reports unused weights in one sentence. The user's own settings are restored.
    """
    from transformers.utils import logging

    loading = logging.get_logger("transformers.modeling_utils")
    loading.addFilter(_is_untold)
    had_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            for name in (r"`(is_)?gradient_checkpointing", r"`use_liger_kernel=True`"):
                warnings.filterwarnings("ignore", message=name, category=FutureWarning)
            # Of a split model's backbone, whose output is changed by nothing.
            warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module \(FSDP\w*Model\)")
            yield
    finally:
        loading.removeFilter(_is_untold)
        if had_bars:
            logging.enable_progress_bar()


def _is_untold(record: "LogRecord") -> bool:
    text = record.getMessage()
    return "LOAD REPORT" not in text and "will NOT tie" not in text


def _check_links(name: str, folder: Path, root: Path, allowed_roots: Sequence[Path]) -> None:
    """Check that neither the folder nor a file in it is a link that leaves the roots. Raises ModelNotFound."""
    if follow(str(folder), root, allowed_roots) is None:
        way_out: Path | None = folder
    else:
        way_out = find_way_out(folder, (root, *allowed_roots))
    if way_out is not None:
        what = "is a link that leaves" if _is_link(way_out) else "is not a valid path, or lies outside"
        raise ModelNotFound(
            f"base_model {name!r}: {way_out} {what} the model root {root}; copy the files there, or add the folder "
            "they are in to TUNEYARD_ALLOWED_MODEL_ROOTS and restart"
        )


def _is_link(path: Path) -> bool:
    try:
        return path.is_symlink()
    except (OSError, ValueError):  # not a valid file name
        return False


def _find_in_cache(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, local_files_only=True, allow_patterns=list(HUB_FILES)))
    except LocalEntryNotFoundError as error:  # its message is advice to programmers
        raise FileNotFoundError("has no such model") from error
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(f"{folder} has no config.json with safetensors")
    return folder


def _fetch_from_hub(name: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    files = {file.rfilename for file in HfApi().model_info(name, timeout=HUB_TIMEOUT_SECONDS).siblings or []}
    if not any(file.endswith(".safetensors") for file in files):
        raise FileNotFoundError("it has no safetensors, the only weights that are read")
    return Path(snapshot_download(name, allow_patterns=list(HUB_FILES), etag_timeout=HUB_TIMEOUT_SECONDS))


def _list_hub_errors() -> tuple[type[Exception], ...]:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    transport_error = HfHubHTTPError.__mro__[1]  # base class of the HTTP client's errors (requests or httpx)
    return (OSError, HFValidationError, transport_error)


def _build_quantization(dtype: "torch.dtype") -> Any:
    """4-bit NormalFloat with double quantization (QLoRA, https://arxiv.org/abs/2305.14314)."""
    from transformers import BitsAndBytesConfig

    check_qlora(inspect_hardware())
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
