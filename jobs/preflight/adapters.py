"""Check that the adapter to start from exists: a folder, or a version in MLflow's registry."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from jobs.mlflow_server import MlflowServer
from jobs.network.deadlines import call_deadline
from jobs.preflight.context import CheckContext
from jobs.preflight.file_checks import LARGEST_JSON, find_fault
from jobs.preflight.findings import Finding
from jobs.spec import JobSpec
from sft.adapting.adapter_files import WEIGHTS, find_contradiction
from sft.errors import ModelNotFound, ModelUnusable
from sft.files.places import follow
from sft.models.model_texts import check_texts
from sft.models.weights import find_weight_damage, measure_header

TIMEOUT_SECONDS = 5.0
MAX_BYTES = 2**26  # of an adapter's weights to check, in a fifth of a second; the plan and the job check all
REGISTERED = re.compile(
    r"models:/(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(?P<mark>[/@])(?P<version>[A-Za-z0-9][A-Za-z0-9._-]*)"
)


def check_adapter(spec: JobSpec, context: CheckContext) -> Iterator[Finding]:
    """Find an adapter that is missing or damaged."""
    reference = spec.config.adapter_path
    if reference is None:
        return
    if reference.startswith("models:"):
        match = REGISTERED.fullmatch(reference)
        if match is None:
            yield _finding(f"{reference!r} is not of the form models:/NAME/VERSION, or models:/NAME/latest")
        elif problem := _find_registry_problem(MlflowServer.find(context.settings), **match.groupdict()):
            yield _finding(f"{reference!r} {problem}")
        return
    settings = context.settings
    roots = [root for root in (settings.output_root, settings.model_root) if context.sees(root)]
    if not roots:
        return
    for root in roots:
        found = follow(reference, root, settings.allowed_model_roots if root == settings.model_root else ())
        if found and (found / "adapter_config.json").is_file():
            yield from _check_files(reference, found)
            return
    places = " and ".join(map(str, roots))
    yield _finding(f"{reference!r} is not a folder with an adapter_config.json under {places}{context.hint}")


def _check_files(reference: str, folder: Path) -> Iterator[Finding]:
    """Check the adapter's texts, and its weights by their header."""
    if fault := find_fault(check_texts, folder, f"{reference!r}"):
        yield Finding(ModelUnusable, "adapter_path", fault)
    elif not (folder / WEIGHTS).is_file():
        yield _finding(f"{reference!r} has no {WEIGHTS}, the only weights that are read; save the adapter again")
    elif fault := find_fault(_check_weights, folder, f"{reference!r}"):
        yield Finding(ModelUnusable, "adapter_path", fault)


def _check_weights(folder: Path, subject: str) -> None:
    if damage := find_weight_damage(folder / WEIGHTS, LARGEST_JSON):
        raise ModelUnusable(f"{subject} can't be read: {WEIGHTS} {damage}")
    if measure_header(folder / WEIGHTS) <= LARGEST_JSON and (found := find_contradiction(folder, MAX_BYTES)):
        raise ModelUnusable(f"{subject} can't be used: {found}")


def _find_registry_problem(server: MlflowServer, name: str, mark: str, version: str) -> str | None:
    """Explain why a version does not exist; None if it does, or if MLflow can't be reached by HTTP."""
    if not server.has_api:
        return None
    with server.open(TIMEOUT_SECONDS) as client, call_deadline(TIMEOUT_SECONDS):
        response = client.get("mlflow/registered-models/get", params={"name": name})
        if response.status_code == httpx.codes.NOT_FOUND:
            return f"is not in the registry: it has no adapter {name}; train one with lora_name {name}, or name another"
        model: dict[str, Any] = response.raise_for_status().json()["registered_model"]
        versions = [str(found["version"]) for found in model.get("latest_versions", [])]
        aliases = [str(alias["alias"]) for alias in model.get("aliases", [])]
        if mark == "@":
            if version in aliases:
                return None
            return f"is not in the registry: {name} has the aliases {', '.join(aliases) or 'none'}"
        if version.lower() == "latest":
            return None if versions else f"is not in the registry: {name} has no versions"
        found = client.get("mlflow/model-versions/get", params={"name": name, "version": version})
        if found.status_code == httpx.codes.NOT_FOUND or found.status_code == httpx.codes.BAD_REQUEST:
            newest = f"its newest version is {max(versions, key=int)}" if versions else "it has no versions"
            return f"is not in the registry: {name} has no version {version}; {newest}"
    return None


def _finding(text: str) -> Finding:
    return Finding(ModelNotFound, "adapter_path", text)
