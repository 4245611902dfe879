"""A dataset registry that somebody else writes: its DVC files read nothing of this machine and run nothing on it."""

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.settings import PROJECT_ROOT, Settings
from sft.errors import DatasetNotFound, InvalidDataset
from tasks.dataset import resolve
from tasks.dataset_registry import git
from tasks.dataset_registry_outputs import GIT_SERVER
from tests.hostile.watch import Watcher

WATCHER = Watcher()
ROW = '{"instruction": "a", "output": "not yours"}\n'
MD5 = hashlib.md5(ROW.encode(), usedforsecurity=False).hexdigest()
LOCK = {"rev_lock": "a" * 40}


def output(md5: str, **more: Any) -> dict[str, Any]:
    """The `.dvc` file of e.jsonl, which has this hash."""
    return {"outs": [{"path": "e.jsonl", "md5": md5, "hash": "md5", **more}]}


def imported(**dependency: Any) -> dict[str, Any]:
    """The `.dvc` file of an e.jsonl whose content is elsewhere."""
    return {"deps": [dependency], "outs": [{"path": "e.jsonl"}], "frozen": True}


NO_MD5, NO_SERVER, NO_CONTENT = "not an md5", "git servers only", "without its content"
HOSTILE = [
    (output("xx{outside}/secret.jsonl"), NO_MD5),
    (output("../../../outside/secret.jsonl"), NO_MD5),
    (output("{outside}/stored"), NO_MD5),  # a folder as the store has them
    (output("../../outside/stored"), NO_MD5),
    ({"outs": [{"path": "e.jsonl", "md5": "../outside/secret.jsonl"}]}, NO_MD5),
    ({"outs": [{"path": "e", "md5": "../../outside/list.dir", "hash": "md5"}]}, NO_MD5),
    (imported(path="{outside}/secret.jsonl"), NO_CONTENT),
    (imported(path="{outside}/secret.jsonl", md5=MD5, size=9), NO_CONTENT),
    (imported(path="file://{outside}/secret.jsonl"), NO_CONTENT),
    (imported(path="../outside/secret.jsonl"), NO_CONTENT),
    (imported(path="http://169.254.169.254/latest/meta-data"), NO_CONTENT),
    (imported(path="remote://a/secret.jsonl"), NO_CONTENT),
    (imported(db={"connection": "x", "query": "select 1"}), NO_CONTENT),
    (imported(path="e.jsonl", repo={"url": "{outside}/repo"}), NO_SERVER),
    (imported(path="e.jsonl", repo={"url": "file://{outside}/repo"}), NO_SERVER),
    (imported(path="e.jsonl", repo={"url": "../outside/repo", **LOCK}), NO_SERVER),
    (imported(path="e.jsonl", repo={"url": "ext::sh -c touch% {outside}/canary", **LOCK}), NO_SERVER),
    (imported(path="e.jsonl", repo={"url": "--upload-pack=touch {outside}/canary"}), NO_SERVER),
    (imported(path="e.jsonl", repo={"url": "ssh://-oProxyCommand=touch%20{outside}/canary/x"}), NO_SERVER),
    (imported(path="e.jsonl", repo={"url": "-oProxyCommand=x@y:z"}), NO_SERVER),
    ({"outs": [{"path": "e", "remote": "a", "files": [{"relpath": "../e.jsonl", "md5": MD5}]}]}, "can't parse"),
]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """What no registry may lead to."""
    folder = tmp_path / "outside"
    (folder / "stored").mkdir(parents=True)
    for name in ("secret.jsonl", "stored/e.jsonl"):
        (folder / name).write_text(ROW)
    (folder / "list.dir").write_text(json.dumps([{"md5": MD5, "relpath": "train.jsonl"}]))
    (folder / "stored/.manifest.json").write_text('{"rows": {"e.jsonl": 1}}')
    return folder


def make_registry(folder: Path, files: dict[str, str]) -> Path:
    """A git repository with these files and a remote of DVC's, which is empty."""
    files = {".dvc/config": "[core]\n remote = a\n['remote \"a\"']\n url = ../../store\n", **files}
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    commit = ("-c", "user.name=A", "-c", "user.email=a@b.c", "commit", "--quiet", "--message", "x")
    for command in (("init", "--quiet", "--initial-branch=main"), ("add", "--all"), commit):
        subprocess.run(("git", *command), cwd=folder, check=True, capture_output=True, timeout=60)
    return folder


@pytest.mark.parametrize(("content", "reason"), HOSTILE)
def test_a_dvc_file_reads_nothing_of_this_machine(
    tmp_path: Path, outside: Path, content: dict[str, Any], reason: str
) -> None:
    text = json.dumps(content).replace("{outside}", str(outside))
    registry = make_registry(tmp_path / "registry", {"e.dvc" if '"e"' in text else "e.jsonl.dvc": text})
    settings = Settings(home=tmp_path / "state", dataset_registry=str(registry))
    with (
        WATCHER.watching(registry, settings.home, registry.parent / "store") as seen,
        pytest.raises(InvalidDataset) as e,
    ):
        resolve("e@main", settings)
    assert reason in str(e.value)
    assert [event for event in seen if str(outside) in event] == []
    assert not (outside / "canary").exists()


def test_an_entry_of_a_list_of_files_reads_nothing_of_this_machine(tmp_path: Path, outside: Path) -> None:
    listing = json.dumps([{"md5": "../../../../../outside/secret.jsonl", "relpath": "train.jsonl"}])
    md5 = hashlib.md5(listing.encode(), usedforsecurity=False).hexdigest()
    content = json.dumps({"outs": [{"path": "e", "md5": f"{md5}.dir", "hash": "md5"}]})
    registry = make_registry(tmp_path / "registry", {"e.dvc": content})
    kept = tmp_path / "store/files/md5" / md5[:2]
    kept.mkdir(parents=True)
    (kept / f"{md5[2:]}.dir").write_text(listing)
    config = f"[core]\n remote = a\n['remote \"a\"']\n url = {tmp_path}/store\n"
    (registry / ".dvc/config").write_text(config)
    settings = Settings(home=tmp_path / "state", dataset_registry=str(registry))
    with WATCHER.watching(registry, settings.home) as seen, pytest.raises(InvalidDataset, match=NO_MD5):
        resolve("e@main", settings)
    assert [event for event in seen if str(outside) in event] == []


def test_what_other_datasets_import_is_not_looked_at(tmp_path: Path) -> None:
    files = {"e.jsonl.dvc": json.dumps(imported(path="/etc/x")), "f.jsonl": ROW}
    registry = make_registry(tmp_path / "registry", files)
    assert resolve("f@main", Settings(home=tmp_path / "state", dataset_registry=str(registry))).rows == 1


REMOTES = [
    ("url = ssh://x/y", "dvc-ssh"),
    ("url = gs://bucket/key", "dvc-gs"),
    ("url = http://127.0.0.1:9/x\nauth = digest", "can't parse"),
    ("url = http://127.0.0.1:99999/x", "can't parse"),
    ("url = nonsense://x", "Unsupported URL"),
]


@pytest.mark.parametrize(("remote", "reason"), REMOTES)
def test_a_remote_that_can_not_be_read_is_a_sentence(tmp_path: Path, remote: str, reason: str) -> None:
    files = {
        "e.jsonl.dvc": json.dumps(output("0" * 32)),
        ".dvc/config": f"[core]\n remote = a\n['remote \"a\"']\n {remote}\n",
    }
    registry = make_registry(tmp_path / "registry", files)
    with pytest.raises(InvalidDataset, match=reason):
        resolve("e@main", Settings(home=tmp_path / "state", dataset_registry=str(registry)))


@pytest.mark.parametrize(
    "url", ["https://git.example/a/b", "ssh://git@git.example/a/b", "git@git.example:a/b.git", "git://x.example/a"]
)
def test_an_import_may_come_from_a_git_server(url: str) -> None:
    assert GIT_SERVER.match(url)


@pytest.mark.parametrize(
    "allowed", [("protocol.ext.allow", "always"), ("protocol.allow", "always")], ids=lambda pair: pair[0]
)
def test_an_address_that_is_a_command_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: tuple[str, str]
) -> None:
    """Not even where the user's git lets it."""
    config = tmp_path / "gitconfig"
    subprocess.run(["git", "config", "--file", str(config), *allowed], check=True)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    url = f"ext::sh -c touch% {tmp_path}/canary% #://x"
    with pytest.raises(DatasetNotFound, match="not allowed"):
        resolve("e@main", Settings(home=tmp_path / "state", dataset_registry=url))
    assert not (tmp_path / "canary").exists()


def test_what_a_repository_lacks_is_not_fetched_by_its_own_command(tmp_path: Path) -> None:
    """A partial clone names a program that gets the rest."""
    registry = make_registry(tmp_path / "registry", {"e.jsonl": ROW})
    blob = git(registry, "rev-parse", "HEAD:e.jsonl")
    for name, value in (
        ("core.repositoryformatversion", "1"),
        ("extensions.partialClone", "origin"),
        ("remote.origin.url", str(tmp_path / "outside")),
        ("remote.origin.promisor", "true"),
        ("remote.origin.uploadpack", f"touch {tmp_path}/canary; false"),
    ):
        subprocess.run(["git", "-C", str(registry), "config", name, value], check=True)
    (registry / ".git/objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(DatasetNotFound):
        git(registry, "cat-file", "blob", blob)
    assert not (tmp_path / "canary").exists()


READ = """
import sys
from sft.confinement import Limits, confined
from tasks import dataset
from jobs.settings import Settings
from tuneyard_wire.dataset_reference import DatasetReference
dataset.REGISTRY_BYTES = 0
with confined(Limits(None, 0.5, None)):
    settings = Settings(home=sys.argv[1], dataset_registry=sys.argv[2])
    dataset.resolve_registered(DatasetReference("x", "main"), settings, "train")
"""


def test_dvc_files_that_grow_as_they_are_read_end_their_process_in_time(tmp_path: Path) -> None:
    """600 bytes of YAML that ten to the ninth power of keys come of: it would hold a worker for good."""
    registry = tmp_path / "registry"
    (registry / ".dvc").mkdir(parents=True)
    (registry / ".dvc/config").touch()
    lines = ["a: &b0 {k: v}", *(f"b{n}: &b{n} {{<<: [{', '.join([f'*b{n - 1}'] * 10)}]}}" for n in range(1, 10))]
    (registry / "dvc.yaml").write_text("\n".join(lines))
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "x"]):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *command], cwd=registry, check=True)
    command = [sys.executable, "-c", READ, str(tmp_path / "home"), str(registry)]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGPROF
