"""A dataset registry that means harm: what its DVC files name is not read, what they would run does not run."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

from jobs.settings import Settings
from sft.errors import TuneyardError
from tasks.dataset import resolve
from tests.attack.case import Finding, Harm, Target, case
from tests.hostile.test_registry import HOSTILE, LOCK, ROW, imported, make_registry, output

MORE = (
    imported(path="e.jsonl", repo={"url": "fd::17", **LOCK}),
    imported(path="e.jsonl", repo={"url": "http://127.0.0.1:9/x", **LOCK}),
    {**output("{outside}/secret.jsonl"), "cmd": "touch {outside}/canary"},
)
STAGES = """stages:
  made:
    cmd: touch {outside}/canary
    outs: [e.jsonl]
"""
HOOKS = ("post-checkout", "post-merge", "pre-commit", "post-index-change", "reference-transaction")


@case
def a_hostile_registry_reads_and_runs_nothing(target: Target) -> Iterator[Finding]:
    """Paths outside, addresses that are commands, stages, hooks, submodules, remotes with programs of their own."""
    outside = make_outside(target.folder / "outside-registry")
    for number, content in enumerate([*(content for content, _ in HOSTILE), *MORE]):
        written = json.dumps(content).replace("{outside}", str(outside))
        files = {"e.dvc" if '"e"' in written else "e.jsonl.dvc": written}
        yield from read_from(target, f"hostile-{number}", files, written)
    stages = {"dvc.yaml": STAGES.format(outside=outside)}
    modules = {".gitmodules": f'[submodule "e"]\n path = e\n url = ext::touch {outside}/canary\n', "e.jsonl.dvc": "{}"}
    remote = {
        ".dvc/config": f"[core]\n remote = a\n['remote \"a\"']\n url = ssh://x/y\n ask_password = false\n"
        f" keyfile = {outside}/secret.jsonl\n",
        "e.jsonl.dvc": json.dumps(output("0" * 32)),
    }
    for name, files in {"stages": stages, "modules": modules, "remote": remote}.items():
        yield from read_from(target, name, files, name)
    if (outside / "canary").exists():
        yield Finding(Harm.ESCAPED, "a registry has run a command")


def make_outside(folder: Path) -> Path:
    """What no registry may lead to."""
    (folder / "stored").mkdir(parents=True)
    for name in ("secret.jsonl", "stored/e.jsonl"):
        (folder / name).write_text(ROW, encoding="utf-8")
    (folder / "list.dir").write_text("[]", encoding="utf-8")
    return folder


def read_from(target: Target, name: str, files: dict[str, str], what: str) -> Iterator[Finding]:
    """Resolve the dataset `e` of a registry of these files."""
    registry = make_registry(target.folder / name / "registry", files)
    canary = target.folder / "outside-registry" / "canary"
    for hook in HOOKS:
        path = registry / ".git" / "hooks" / hook
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\ntouch {canary}\n", encoding="utf-8")
        path.chmod(0o755)
    settings = Settings(home=target.folder / name / "state", dataset_registry=f"file://{registry}")
    try:
        found = resolve("e@main", settings)
    except TuneyardError:
        pass
    except (subprocess.SubprocessError, OSError, ValueError, LookupError) as error:
        yield Finding(Harm.UNSETTLED, f"{what[:200]}: {error!r}")
    else:
        yield Finding(Harm.LEAKED, f"{what[:200]}: {found}")
    kept = [path for path in settings.home.rglob("*") if path.is_file() and path.suffix != ".pack"]
    if any(ROW.strip().encode() in path.read_bytes() for path in kept):
        yield Finding(Harm.LEAKED, f"{what[:200]}: what lies outside is in the state folder")
