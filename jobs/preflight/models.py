"""Whether the base model is anywhere a job would look: below the model root, in the Hub's local cache, on the Hub."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from jobs.preflight.examination import LARGEST_JSON, find_fault
from jobs.preflight.findings import Finding
from jobs.preflight.hub import HUB_ID, Presence, find_cached, find_on_hub
from jobs.preflight.surroundings import Surroundings
from jobs.spec import JobSpec
from sft.errors import ModelNotFound, ModelUnusable
from sft.files.places import find_way_out, follow
from sft.models.weights import check_weights


def check_model(spec: JobSpec, around: Surroundings) -> Iterator[Finding]:
    """A base model that is missing, leads out of the model root, or lacks what is read of it."""
    name, root = spec.config.base_model, around.settings.model_root
    if not around.sees(root):
        return
    folder = place_of(name, around)
    if folder is None:
        yield _finding(f"{name!r} must be a model id or a path below the model root {root}")
        return
    way_out = _find_way_out(folder, around)
    if way_out is not None:
        yield _finding(
            f"{name!r}: {way_out} is a link that leaves the model root {root}. Copy the files, or add its target to "
            "TUNEYARD_ALLOWED_MODEL_ROOTS and restart"
        )
    elif (folder / "config.json").is_file():
        if fault := find_fault(_check_files, folder, repr(name)):
            yield Finding(ModelUnusable, "base_model", fault)
    elif (problem := _explain_absence(name, folder, around)) is not None:
        yield _finding(f"{name!r} {problem}{around.hint}")


def find_model_folder(name: str, around: Surroundings) -> Path | None:
    """Where the model's files are on this machine, if they are."""
    folder = place_of(name, around)
    if folder is not None and _find_way_out(folder, around) is None:
        if (folder / "config.json").is_file():
            return folder
        return find_cached("models", name)
    return None


def _find_way_out(folder: Path, around: Surroundings) -> Path | None:
    """The folder itself, or a link in it, that leads to where no model may be read from."""
    root, allowed = around.settings.model_root, around.settings.allowed_model_roots
    if follow(str(folder), root, allowed) is None:
        return folder
    return find_way_out(folder, (root, *allowed))


def place_of(name: str, around: Surroundings) -> Path | None:
    """Where in the model root the model would be; None for a name that leads out of it."""
    root = Path(os.path.normpath(around.settings.model_root))
    folder = Path(os.path.normpath(root / name))
    return folder if folder.is_relative_to(root) and folder != root and "\0" not in name else None


def _explain_absence(name: str, folder: Path, around: Surroundings) -> str | None:
    """Why the model is nowhere; None where that is not known."""
    if (folder / "adapter_config.json").is_file():
        return f"is an adapter, not a base model; name its base model, and {folder} as adapter_path"
    if find_cached("models", name) is not None:
        return None
    where = f"is neither in the model root ({folder}) nor in the Hugging Face cache"
    remedy = f"put its files into {folder} or name another model"
    if not HUB_ID.fullmatch(name):
        return f"{where}, and is not an id of a model on the Hub; {remedy}"
    found = find_on_hub("models", name)
    if found is Presence.ABSENT:
        return f"{where}, and the Hub has no such model that is open to you; {remedy}, or set HF_TOKEN"
    if found is Presence.UNUSABLE:
        return f"{where}, and on the Hub it has no safetensors, the only weights that are read; name another model"
    if found is Presence.UNREACHABLE and around.workers_are_here:
        return f"{where}, and the Hub can't be reached; {remedy}"
    return None


def _check_files(folder: Path, subject: str) -> None:
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
