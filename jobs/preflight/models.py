"""Check that the base model exists: below the model root, in the Hub's local cache, or on the Hub."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from jobs.preflight.context import CheckContext
from jobs.preflight.file_checks import LARGEST_JSON, find_fault
from jobs.preflight.findings import Finding
from jobs.preflight.hub import HUB_ID, Presence, find_cached, find_on_hub
from jobs.spec import JobSpec
from sft.errors import ModelNotFound, ModelUnusable
from sft.files.places import find_way_out, follow
from sft.models.tokenizer_files import check_tokenizer
from sft.models.weights import check_weights


def check_model(spec: JobSpec, context: CheckContext) -> Iterator[Finding]:
    """Find a base model that is missing, damaged, or outside the model root."""
    return check_base_model(spec.config.base_model, context)


def check_base_model(name: str, context: CheckContext) -> Iterator[Finding]:
    """`check_model`, by the model's name."""
    root = context.settings.model_root
    if not context.sees(root):
        return
    folder = place_of(name, context)
    if folder is None:
        remedy = "`tuneyard models add` adds a folder"
        yield _finding(f"{name!r} must be a model id or a path below the model root {root}; {remedy}")
        return
    way_out = _find_way_out(folder, context)
    if way_out is not None:
        yield _finding(
            f"{name!r}: {way_out} is a link that leaves the model root {root}. Copy the files, or add its target to "
            "TUNEYARD_ALLOWED_MODEL_ROOTS and restart"
        )
    elif (folder / "config.json").is_file():
        if fault := find_fault(check_files, folder, repr(name)) or find_fault(check_tokenizer, folder, repr(name)):
            yield Finding(ModelUnusable, "base_model", fault)
    elif (problem := _explain_absence(name, folder, context)) is not None:
        yield _finding(f"{name!r} {problem}{context.hint}")


def find_model_folder(name: str, context: CheckContext) -> Path | None:
    """Find the model's folder on this machine; None if there is none."""
    folder = place_of(name, context)
    if folder is not None and _find_way_out(folder, context) is None:
        if (folder / "config.json").is_file():
            return folder
        return find_cached("models", name)
    return None


def _find_way_out(folder: Path, context: CheckContext) -> Path | None:
    """Find the folder, or a link in it, that leaves the roots from which models may be read."""
    root, allowed = context.settings.model_root, context.settings.allowed_model_roots
    if follow(str(folder), root, allowed) is None:
        return folder
    return find_way_out(folder, (root, *allowed))


def place_of(name: str, context: CheckContext) -> Path | None:
    """The model's folder in the model root; None for a name that leaves the root."""
    root = Path(os.path.normpath(context.settings.model_root))
    folder = Path(os.path.normpath(root / name))
    return folder if folder.is_relative_to(root) and folder != root and "\0" not in name else None


def _explain_absence(name: str, folder: Path, context: CheckContext) -> str | None:
    """Explain why the model was not found; None if it may exist."""
    if (folder / "adapter_config.json").is_file():
        return f"is an adapter, not a base model; name its base model, and {folder} as adapter_path"
    if find_cached("models", name) is not None:
        return None
    absence = f"is neither in the model root ({folder}) nor in the Hugging Face cache"
    remedy = f"put its files into {folder} (`tuneyard models add`) or name another model"
    if not HUB_ID.fullmatch(name):
        return f"{absence}, and is not a model id of the Hub; {remedy}"
    found = find_on_hub("models", name)
    if found is Presence.ABSENT:
        return f"{absence}, and the Hub has no such model that you can access; {remedy}, or set HF_TOKEN"
    if found is Presence.UNUSABLE:
        return f"{absence}, and on the Hub it has no safetensors, the only supported format; name another model"
    if found is Presence.UNREACHABLE and context.workers_are_here:
        return f"{absence}, and the Hub can't be reached; {remedy}"
    return None


def check_files(folder: Path, subject: str) -> None:
    """Check configuration, headers and sizes of a model's files. Raises ModelUnusable."""
    check_weights(folder, subject, LARGEST_JSON)
    _check_configuration(folder, subject)


def _check_configuration(folder: Path, subject: str) -> None:
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelUnusable(
            f"{subject} can't be read: config.json is not valid JSON; copy or download it again"
        ) from error
    if not isinstance(content, dict):
        raise ModelUnusable(f"{subject} can't be read: config.json must hold an object; copy or download it again")


def _finding(text: str) -> Finding:
    return Finding(ModelNotFound, "base_model", text)
