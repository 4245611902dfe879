"""Look up datasets in the registry with git and its DVC files, without the package DVC, which the API never loads."""

import functools
import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import yaml

from jobs.preflight.dvc_files import MAX_BYTES, read_outputs
from jobs.preflight.repository import NotKnown, Repository
from jobs.project import find_sources
from jobs.settings import Settings
from tuneyard_wire.dataset_reference import FILE_SUFFIXES, DatasetReference

logger = logging.getLogger(__name__)

AT_ONCE = 8  # look-ups, so that a registry that hangs blocks no more of the checks' threads
MAX_CACHED = 10_000
CACHE_SECONDS = 10.0
REFS = 100  # branches and tags, the newest first, in which a name is looked for
NOT_FOUND = 1  # git's exit code for an unknown revision; other codes are failures

_found: dict[tuple[Path, DatasetReference], float] = {}
_slots = threading.BoundedSemaphore(AT_ONCE)


@dataclass(frozen=True)
class RegistryView:
    """A git repository, or the sources that the default registry is built from on first use.

    Attributes:
        is_current: Whether it is complete; a mirror of a remote registry may be behind.
        built: The datasets that the sources define.
    """

    folder: Path
    is_current: bool
    built: frozenset[DatasetReference] = frozenset()

    def find_problem(self, dataset: DatasetReference) -> str | None:
        """Explain why the registry has no such dataset; None if it has it, or if that is not known."""
        if dataset in self.built:
            return None
        key = (self.folder, dataset)
        if time.monotonic() - _found.get(key, float("-inf")) < CACHE_SECONDS:
            return None
        try:
            problem = self._look(dataset) if self._is_git() else self._look_at_sources(dataset)
        except NotKnown as error:
            logger.debug("Could not read the registry %s: %s", self.folder, error)
            return None
        if problem is None:
            if len(_found) >= MAX_CACHED:
                _found.clear()
            _found[key] = time.monotonic()
        return problem if self.is_current else None

    def has(self, name: str, revisions: Iterable[str | None] | None = None) -> bool:
        """Whether the registry is known to have a dataset of this name, at one of these revisions.

        Args:
            revisions: None among them is the main branch; without any all branches and the newest tags.
        """
        if any(built.name == name for built in self.built):
            return True
        if not self._is_git():
            return False
        try:
            git = Repository(self.folder)
            if revisions is None:
                named = git.output_of(
                    "for-each-ref", "--sort=-creatordate", f"--count={REFS}", "--format=%(objectname)"
                )
                revisions = dict.fromkeys(named.split())
            return any(self._look_up(git, DatasetReference(name, revision)) is None for revision in revisions)
        except (NotKnown, OSError) as error:
            logger.debug("Could not read the registry %s: %s", self.folder, error)
            return False

    def _is_git(self) -> bool:
        return (self.folder / ".git").exists() or (self.folder / "HEAD").is_file()

    def _look(self, dataset: DatasetReference) -> str | None:
        if not _slots.acquire(blocking=False):
            raise NotKnown(f"{AT_ONCE} other look-ups are running")
        try:
            return self._look_up(Repository(self.folder), dataset)
        finally:
            _slots.release()

    def _look_up(self, git: Repository, dataset: DatasetReference) -> str | None:
        name, wanted = (
            dataset.name,
            dataset.revision or ("main" if git.output_of("branch", "--list", "main") else "HEAD"),
        )
        code, commit = git.run("rev-parse", "--verify", "--quiet", "--end-of-options", f"{wanted}^{{commit}}")
        if code == NOT_FOUND:
            tags = git.output_of("tag", "--list").split()
            branches = git.output_of("branch", "--format=%(refname:short)").split()
            return (
                f"{wanted!r} is not a revision in the dataset registry {self.folder}; tags: {_list(tags)}; "
                f"branches: {_list(branches)}"
            )
        if code:
            return None
        files = git.output_of("ls-tree", "-r", "-z", "--name-only", "--full-tree", commit).split("\0")
        outputs = {*_list_outputs(git, commit, files)}
        if any(_is_at(place, name + suffix) for place in {*files, *outputs} for suffix in ("", *FILE_SUFFIXES)):
            return None
        names = sorted({PurePosixPath(place).parts[0] for place in outputs})
        reference = str(DatasetReference(name, wanted))
        return f"{reference!r} is not in the dataset registry {self.folder}; it has: {_list(names)}"

    def _look_at_sources(self, dataset: DatasetReference) -> str | None:
        if not self.built:
            return None
        versions = sorted({str(built.revision) for built in self.built})
        names = sorted({built.name for built in self.built})
        if dataset.revision not in (*versions, "main", None):
            tags = _list(versions)
            return f"{dataset.revision!r} is not a revision in the dataset registry; tags: {tags}; branches: main"
        if dataset.name in names:
            return None
        return f"{str(dataset)!r} is not in the dataset registry; it has: {_list(names)}"


def find_view(settings: Settings, workers_are_here: bool) -> RegistryView | None:
    """Find the registry, or a mirror of it, on this machine; None if there is none."""
    named = settings.dataset_registry
    if named is None:
        folder = settings.home / "registry"
        return RegistryView(folder, True, _find_built(find_sources())) if workers_are_here else None
    if named.startswith("file://"):
        named = unquote(urlsplit(named).path)
    path = Path(named).expanduser()
    if path.exists():
        return RegistryView(path.resolve(), True)
    mirror = settings.home / "registries" / hashlib.sha256(named.encode()).hexdigest()[:16]
    return RegistryView(mirror, False) if mirror.exists() else None


def _find_built(project: Path) -> frozenset[DatasetReference]:
    files = (project / "datasets/params.yaml", project / "dvc.yaml")
    return _find_built_once(project, tuple(file.stat().st_mtime_ns for file in files if file.exists()))


@functools.lru_cache(maxsize=4)
def _find_built_once(project: Path, _changed: tuple[int, ...]) -> frozenset[DatasetReference]:
    return frozenset(_read_sources(project))


def _read_sources(project: Path) -> Iterator[DatasetReference]:
    """Read the datasets and versions that the default registry is built from."""
    try:
        versions = yaml.safe_load((project / "datasets/params.yaml").read_text(encoding="utf-8"))["versions"]
        outputs = [*read_outputs((project / "dvc.yaml").read_bytes())]
    except (OSError, yaml.YAMLError, KeyError, TypeError, NotKnown):
        return
    yield from (DatasetReference.parse(f"{output}@{version}") for output in outputs for version in versions)


def _list_outputs(git: Repository, commit: str, files: list[str]) -> Iterator[str]:
    """List the paths that DVC's files track."""
    wanted = [file for file in files if file.endswith(".dvc") or PurePosixPath(file).name in ("dvc.yaml", "dvc.lock")]
    for file, content in git.read_files(commit, wanted, MAX_BYTES) if wanted else ():
        yield from (os.path.normpath(PurePosixPath(file).parent / output) for output in read_outputs(content))


def _is_at(place: str, name: str) -> bool:
    """Whether a path is the dataset, part of it, or a tracked folder that may contain it."""
    return place == name or place.startswith(f"{name}/") or name.startswith(f"{place}/")


def _list(names: list[str]) -> str:
    return ", ".join(names) or "none"
