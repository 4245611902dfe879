"""Which files of a folder make a base model, and which names models and their files may have.

The client chooses by this what it uploads, and the service what it accepts.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

CONFIG, WHOLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
TEMPLATES = "additional_chat_templates"  # the only subfolder that tokenizers read
How = Literal["auto", "link", "copy"]  # how a folder of the service's machine is added
OWN_ORG = "local"  # of a model whose name is given without one
MAX_FILES = 4096
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
MODEL_NAME = rf"{_PART}/{_PART}"
_TEXTS = r"README\.md|LICENSE|LICENSE\.md|LICENSE\.txt|NOTICE"
MODEL_FILE = rf"(?:{TEMPLATES}/)?(?:{_TEXTS}|[A-Za-z0-9_][A-Za-z0-9._-]{{0,200}}\.(?:safetensors|json|jinja|txt|model))"
MODEL_NAME_RULE = (
    "must be ORG/NAME of letters, digits, '.', '_' and '-', each starting with a letter or digit and of at most 96 "
    "characters"
)
_WEIGHTS = ".safetensors"
_NOT_IN_NAME = re.compile(r"[^A-Za-z0-9._-]+")


class Selection(NamedTuple):
    """The files of a folder that make a base model, and the entries that are left out, as POSIX paths in it."""

    files: tuple[str, ...]
    left_out: tuple[str, ...]


def is_model_folder(folder: Path) -> bool:
    """Whether the folder has the configuration of a base model."""
    return (folder / CONFIG).is_file()


def explain_no_model(folder: Path) -> str | None:
    """Say what a folder without a base model is, and what to name instead; None for one with a model."""
    if is_model_folder(folder):
        return None
    if not folder.is_dir():
        return "is not a folder"
    if (folder / ADAPTER).is_file():
        return f"has an adapter ({ADAPTER}), not a base model; add the model it was made of"
    return f"has no {CONFIG}; name the folder of a model in transformers' format"


def select_files(folder: Path) -> Selection:
    """Choose what training reads: configuration, tokenizer, templates and the weights that are loaded.

    Left out are other formats of the weights, checkpoints and all else in it. Raises OSError.
    """
    entries = sorted(path.name for path in folder.iterdir())
    weights = _name_weights(folder)
    chosen, left_out = list[str](), list[str]()
    for name in entries:
        if name == TEMPLATES and (folder / name).is_dir():
            inner = sorted(f"{name}/{path.name}" for path in (folder / name).iterdir())
            chosen += [path for path in inner if is_file_name(path) and (folder / path).is_file()]
        else:
            is_other_weight = weights is not None and name.endswith(".safetensors") and name not in weights
            is_read = is_file_name(name) and (folder / name).is_file() and not is_other_weight
            (chosen if is_read else left_out).append(name)
    return Selection(tuple(chosen), tuple(left_out))


def find_foreign(folder: Path, files: Iterable[str], roots: Iterable[Path] = ()) -> str | None:
    """Explain which of a folder's files is a link to a file that is not the model's; None if none is.

    Who reads the folder may be allowed to read more than whoever made it was: a link `README.md` to a private key
    would be copied or sent. Links are followed within the folder, in a snapshot of the Hub's cache within the cached
    repository (whose `blobs` hold the files), into `roots`, and for weights, which are known by content, anywhere.
    Raises OSError.
    """
    real = folder.resolve()
    own = real.parents[1] if real.parent.name == "snapshots" and real.parents[1].name.startswith("models--") else real
    for name in files:
        target = (folder / name).resolve()
        if any(target.is_relative_to(root) for root in (own, *roots)):
            continue
        if not (name.endswith(_WEIGHTS) and _is_safetensors(target)):
            return f"{name} is a link to {target}, which is not in the folder; put a copy in the link's place"
    return None


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        begin = file.read(9)
    return begin[8:] == b"{" and int.from_bytes(begin[:8], "little") <= path.stat().st_size - 8


def _name_weights(folder: Path) -> set[str] | None:
    """The names of the weight files that are loaded; None for all, if that is not known."""
    if (folder / WHOLE).is_file():
        return {WHOLE}
    try:
        names = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        return {str(name) for name in names}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def is_file_name(path: str) -> bool:
    """Whether a model may have a file of this name."""
    return re.fullmatch(MODEL_FILE, path) is not None


def is_model_name(name: str) -> bool:
    """Whether a model may be added under this name."""
    return re.fullmatch(MODEL_NAME, name) is not None


def complete_name(name: str) -> str:
    """The name with its organisation: `local/NAME` for a name without one."""
    return name if "/" in name else f"{OWN_ORG}/{name}"


def derive_name(folder: Path) -> str:
    """A name for the model in a folder, made of the folder's own."""
    plain = _NOT_IN_NAME.sub("-", folder.name).strip("-._")[:80]
    return complete_name(plain or "model")
