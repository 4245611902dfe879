"""The git repository of added data: commits and tags by git's plumbing, without a work tree to keep in step."""

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from sft.errors import DiskFull, StackError
from sft.files.disk import is_about_space
from sft.files.publication import publish_folder

SECONDS = 60.0
TAGS, DELETED = "refs/tags/", "refs/deleted/"
_NO_SPACE = ("No space left on device", "Disk quota exceeded", "File too large")
_AUTHOR = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "Tuneyard"), ("EMAIL", "tuneyard@localhost"))
}
_DURABLE = ("-c", "core.fsync=all", "-c", "core.fsyncMethod=fsync", "-c", "gc.auto=0")


class GitRepository:
    """A repository in `folder`. Who writes holds the registry's lock.

    Methods raise StackError if git fails, and DiskFull if it has no space.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create(self, files: dict[str, str], untracked: dict[str, str]) -> None:
        """Make the repository, complete or not at all, with a branch `main` that holds `files`."""
        with publish_folder(self.folder, replace=False) as fresh:
            made = GitRepository(fresh)
            made.run("init", "--quiet", "--template=", "--initial-branch=main")
            commit = made.commit(files, "Registry of added data")
            made.run("update-ref", "refs/heads/main", commit)
            made.run("reset", "--quiet", "--hard")
            for name, content in untracked.items():
                (fresh / name).write_text(content, encoding="utf-8")
            (fresh / ".git/refs/tags").mkdir(parents=True, exist_ok=True)

    def commit(self, files: dict[str, str], message: str, parent: str | None = None) -> str:
        """Write a commit with these files, of names with at most one folder; returns its SHA. No ref names it yet."""
        folders: dict[str, list[tuple[str, str]]] = {}
        for path, content in files.items():
            folder, _, name = path.rpartition("/")
            blob = self.run("hash-object", "-w", "--stdin", stdin=content)
            folders.setdefault(folder, []).append((name, blob))
        entries = [f"100644 blob {blob}\t{name}" for name, blob in folders.pop("", [])]
        for folder, inside in folders.items():
            tree = self._write_tree(f"100644 blob {blob}\t{name}" for name, blob in inside)
            entries.append(f"040000 tree {tree}\t{folder}")
        parents = ("-p", parent) if parent else ()
        return self.run("commit-tree", *parents, "-m", message, self._write_tree(entries))

    def _write_tree(self, entries: Iterable[str]) -> str:
        return self.run("mktree", stdin="".join(f"{entry}\n" for entry in entries))

    def update(self, *changes: str) -> None:
        """Change refs in one transaction, by the commands of `git update-ref --stdin`."""
        self.run("update-ref", "--stdin", stdin="".join(f"{change}\n" for change in changes))

    def read_refs(self) -> dict[str, str]:
        """Commits of all tags and marks of deleted versions, by ref."""
        found = self.run("for-each-ref", "--format=%(objectname) %(refname)", TAGS, DELETED)
        return {ref: commit for commit, ref in (line.split(" ", 1) for line in found.splitlines())}

    def read_files(self, commits: list[str], path: str) -> Iterator[tuple[str, bytes]]:
        """Yield a file's content at each commit that has it."""
        if not commits:
            return
        output = self._run("cat-file", "--batch", stdin="".join(f"{commit}:{path}\n" for commit in commits).encode())
        at = 0
        for commit in commits:
            end = output.index(b"\n", at)
            *_, size = output[at:end].split(b" ")
            at = end + 1
            if not size.isdigit():
                continue
            yield commit, output[at : at + int(size)]
            at += int(size) + 1

    def tidy(self) -> None:
        """Remove the locks that a killed git left behind: who holds the registry's lock is alone."""
        for lock in (*(self.folder / ".git").glob("*.lock"), *(self.folder / ".git/refs").rglob("*.lock")):
            lock.unlink(missing_ok=True)  # no version's name ends so (`naming`)

    def forget_unnamed(self) -> None:
        """Remove the objects that no ref leads to."""
        self.run("prune", "--expire=now")
        for leftover in (self.folder / ".git/objects").glob("**/tmp_obj_*"):
            leftover.unlink(missing_ok=True)

    def run(self, *arguments: str, stdin: str = "") -> str:
        """Run git; returns what it prints, without the last line break."""
        return self._run(*arguments, stdin=stdin.encode()).decode("utf-8", "replace").strip("\n")

    def _run(self, *arguments: str, stdin: bytes) -> bytes:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        environment = {
            **kept,
            **_AUTHOR,
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_CEILING_DIRECTORIES": str(self.folder.parent),
            "LC_ALL": "C",
        }
        command = [shutil.which("git") or "git", *_DURABLE, "-C", str(self.folder), *arguments]
        try:
            done = subprocess.run(
                command, input=stdin, capture_output=True, check=True, timeout=SECONDS, env=environment
            )
        except (OSError, subprocess.SubprocessError) as error:
            said = (getattr(error, "stderr", None) or b"").decode("utf-8", "replace").strip() or str(error)
            if is_about_space(error) or any(words in said for words in _NO_SPACE):
                raise DiskFull(f"the registry of added data in {self.folder} can't be written to: {said}") from error
            raise StackError(
                f"git {arguments[0]} failed on the registry of added data {self.folder}: {said}"
            ) from error
        return done.stdout
