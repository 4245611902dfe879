"""Checks the weight files of a model or an adapter before loading: Git LFS pointers, truncated files, missing parts."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sft.errors import ModelUnusable, TuneyardError, is_of_machine, walk_causes
from sft.files.disk import is_about_space
from sft.models.model_configuration import check_configuration
from sft.models.model_texts import check_texts

POINTER = b"version https://git-lfs.github.com/spec/"
SMALL_BYTES = 1024  # Git LFS pointers are smaller
# safetensors accepts 100 MB, which take a gigabyte once parsed; usual are 100 bytes per tensor.
LARGEST_HEADER = 50_000_000
LARGEST_JSON = 2**30  # default limit for headers and indexes: any size
SMALL_NUMBERS = ("F8", "F6", "F4", "I8", "U8", "I4", "U4")
LARGEST, MOST_DIMENSIONS = 2**63 - 1, 64
ADAPTER = "adapter_config.json"
INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
OTHER_WEIGHTS = {
    "*.bin": "pickled weights",
    "*.pt": "pickled weights",
    "*.pth": "pickled weights",
    "*.gguf": "GGUF files",
}
# Bits per number by safetensors' dtype; the sizes of other dtypes are not checked.
BITS = {"BOOL": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32} | {
    "F64": 64,
    "I64": 64,
    "U64": 64,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
}


@contextmanager
def raising_unusable(subject: str, folder: Path | None = None) -> Iterator[None]:
    """Raise a library's errors about a model's files as ModelUnusable.

    Errors of any type are translated, except our own and those about a lack of memory or disk.

    Args:
        subject: the beginning of the message, such as `base_model NAME`.
        folder: its files are searched for a better reason, such as a Git LFS pointer.
    """
    try:
        yield
    except TuneyardError:
        raise
    except Exception as error:
        if is_of_machine(error) or any(map(is_about_space, walk_causes(error))):
            raise
        reason = (folder and find_pointer(folder)) or _explain(error)
        raise ModelUnusable(f"{subject} {reason}") from error


def check_weights(folder: Path, subject: str, most_bytes: int = LARGEST_JSON) -> None:
    """Check by names, headers and sizes that every weight file is complete and that no text file is too large.

    Args:
        most_bytes: larger headers and indexes are not checked, for callers with little time.

    Raises:
        ModelUnusable: naming the file, what is wrong with it, and the remedy.
    """
    check_texts(folder, subject)
    check_configuration(folder, subject)
    small = None
    for path in list_weight_files(folder, subject, most_bytes):
        damage, tensors = _inspect(path, most_bytes)
        if damage:
            raise ModelUnusable(f"{subject} can't be read: {path.name} {damage}")
        small = small or _find_small_numbers(path, tensors)
    if pointer := find_pointer(folder):
        raise ModelUnusable(f"{subject} {pointer}")
    if (folder / ADAPTER).is_file():
        raise ModelUnusable(
            f"{subject} has an adapter beside its own weights ({ADAPTER}), which transformers would put on them; "
            "move the adapter's files to a folder of their own (to go on from it, name that as adapter_path)"
        )
    config = folder / "config.json"
    if small and config.is_file() and "quantization_config" not in config.read_text(encoding="utf-8", errors="replace"):
        raise ModelUnusable(
            f"{subject} can't be read: {small}, and config.json has no quantization_config to scale it by; take the "
            "model in bf16, or the config.json that belongs to it"
        )


def _find_small_numbers(path: Path, tensors: dict[str, Any]) -> str | None:
    """Find a weight stored in 8 bits or fewer: without a quantization_config it would be loaded unscaled."""
    for name, facts in tensors.items():
        if str(facts["dtype"]).startswith(SMALL_NUMBERS) and len(facts["shape"]) > 1 and name.endswith("weight"):
            return f"{name} of {path.name} is in {facts['dtype']}"
    return None


def find_weight_damage(path: Path, most_bytes: int = LARGEST_JSON) -> str | None:
    """Explain what is wrong with a safetensors file; None if nothing is. Reads only its header, up to `most_bytes`."""
    return _inspect(path, most_bytes)[0]


def _inspect(path: Path, most_bytes: int) -> tuple[str | None, dict[str, Any]]:
    """Explain what is wrong with a safetensors file, or return its tensors if its header is at most `most_bytes`."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            beginning = start + file.read(len(POINTER))
            if is_pointer(beginning):
                return "is a Git LFS pointer, not the weights: run `git lfs pull` in that folder", {}
            length = int.from_bytes(start, "little")
            if size < 8 or not 2 <= length <= LARGEST_HEADER:
                return f"is not a safetensors file ({size} bytes): copy or download it again", {}
            if length > size - 8:
                return f"is cut off after {size} bytes: copy or download it again", {}
            if length > most_bytes:
                return None, {}
            file.seek(8)
            header = json.loads(file.read(length))
        tensors = {name: facts for name, facts in header.items() if name != "__metadata__"}
        return _find_contradiction(tensors, size - length - 8, size), tensors
    except OSError as error:
        return f"can't be opened ({error.strerror or error})", {}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return "has no header that can be read: copy or download it again", {}


def _find_contradiction(tensors: dict[str, Any], room: int, size: int) -> str | None:
    """Explain if a header's tensors do not fill the rest of the file without gaps; None if they do.

    Raises ValueError and the like for a malformed header.

    Args:
        room: bytes after the header.
        size: bytes of the file.
    """
    places = sorted((*facts["data_offsets"], name) for name, facts in tensors.items())
    if not all(type(place) is int and 0 <= place <= LARGEST for start, end, _ in places for place in (start, end)):
        raise ValueError("no offset of a file")
    end = max((place[1] for place in places), default=0)
    if end != room:
        what = "is cut off" if end > room else "is longer than it says"
        return f"{what}: it has {size} bytes and should have {size - room + end}; copy or download it again"
    reached = 0
    for start, end, name in places:
        if start != reached or end < start:
            return f"contradicts itself about {ascii(name)[1:-1]:.200}: copy or download it again"
        reached = end
        shape, bits = tensors[name]["shape"], BITS.get(tensors[name]["dtype"])
        if len(shape) > MOST_DIMENSIONS or not all(type(length) is int and 0 <= length <= LARGEST for length in shape):
            raise ValueError("no shape of a tensor")
        if bits and math.prod(shape) * bits != 8 * (end - start):
            return f"contradicts itself about {ascii(name)[1:-1]:.200}: copy or download it again"
    return None


def read_shapes(path: Path) -> dict[str, tuple[str, list[int]]]:
    """Read dtype and shape of each tensor in an intact safetensors file."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {name: (facts["dtype"], facts["shape"]) for name, facts in header.items() if name != "__metadata__"}


def find_pointer(folder: Path) -> str | None:
    """Explain which file of this folder is a Git LFS pointer; None if none is."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        try:
            if path.is_file() and path.stat().st_size < SMALL_BYTES and is_pointer(path.read_bytes()):
                return (
                    f"can't be read: {path.name} is a Git LFS pointer, not the file itself: run `git lfs pull` in "
                    "that folder"
                )
        except OSError:
            continue
    return None


def is_pointer(beginning: bytes) -> bool:
    """Whether a file that begins like this is a Git LFS pointer."""
    return beginning.startswith(POINTER[: max(len(beginning), 8)]) and len(beginning) >= 8


def measure_header(path: Path) -> int:
    """Size of a safetensors file's header, from its first 8 bytes."""
    with path.open("rb") as file:
        return int.from_bytes(file.read(8), "little")


def list_weight_files(folder: Path, subject: str, most_bytes: int = LARGEST_JSON) -> list[Path]:
    """List the files that weights are read from; none if the index that names them exceeds `most_bytes`."""
    index = folder / INDEX
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    if not index.is_file():
        raise ModelUnusable(f"{subject} {_describe_others(folder)}")
    if index.stat().st_size > most_bytes:
        return []
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = find_pointer(folder) or f"can't be read: {INDEX} holds no list of files ({type(error).__name__})"
        raise ModelUnusable(f"{subject} {reason}") from error
    if strange := [str(name) for name in names if not isinstance(name, str) or Path(name).name != name]:
        raise ModelUnusable(
            f"{subject} can't be read: {INDEX} names {strange[0]!r:.200}, which is not a file beside it"
        )
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ModelUnusable(
            f"{subject} is not all there: {missing[0]} is missing ({len(missing)} of the {len(names)} files that "
            f"{INDEX} names); copy or download the rest"
        )
    return [folder / name for name in names]


def _describe_others(folder: Path) -> str:
    found = [
        f"{what} ({path.name})" for pattern, what in OTHER_WEIGHTS.items() for path in sorted(folder.glob(pattern))
    ]
    stray = [path.name for path in sorted(folder.glob("*.safetensors"))]
    if stray:
        return f"has no {WHOLE} and no {INDEX}, only {stray[0]}; download the repository in transformers' format"
    if found:
        return (
            f"has {found[0]} and no safetensors, the only weights that are read: save it again with "
            "`save_pretrained`, or take a repository that has them"
        )
    return f"has no weights: neither {WHOLE} nor {INDEX} is there; download them too (a gated model asks for a login)"


def _explain(error: Exception) -> str:
    text: Any = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return "needs code of its own, which is never run: take a model that transformers knows by itself"
    return f"can't be read: {type(error).__name__}: {text[:300]}"
