"""`OwnRegistry`: the versions of added datasets, and the only place that publishes and deletes them.

A version is there once its tag is: the tag is the last thing written and the first one removed. What a killed process
left behind, a file or an object of git that no tag leads to, is removed by the next one that writes.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import yaml
from filelock import FileLock, Timeout

from jobs.errors import NameTaken
from jobs.own_data.naming import NEWEST, read_version
from jobs.own_data.repository import DELETED, TAGS, GitRepository
from jobs.own_data.version import DataVersion
from sft.errors import DatasetNotFound, InvalidDataset, StackError
from sft.files.publication import sync_path
from tuneyard_wire.dataset_reference import MARK, DatasetReference

logger = logging.getLogger(__name__)

FOLDER = "own-data"  # in the state folder
RECORD = ".tuneyard/version.json"
LOCK_SECONDS = 600.0
FRESH_SECONDS = 2.0  # a folder changed so recently may change again within the same tick of its file system's clock
MOST_CACHED = 20_000
_REMOTE = "['remote \"store\"']\n    url = {}\n"

Stamp = tuple[int, ...]


class Published(NamedTuple):
    """A version, and whether it was made now; the same content under the same name is the version it was before."""

    version: DataVersion
    is_new: bool


@dataclass(frozen=True)
class _Refs:
    """Commit of each version, and the versions that were deleted, by name and number."""

    tags: dict[str, dict[int, str]]
    deleted: dict[str, set[int]]


_refs: dict[Path, tuple[Stamp, _Refs]] = {}
_records: dict[tuple[Path, str], DataVersion] = {}


class OwnRegistry:
    """The registry of added data below a state folder, which need not exist yet. Safe for threads and processes."""

    def __init__(self, home: Path) -> None:
        self.home = home / FOLDER
        self.folder = self.home / "registry"  # a git + DVC repository
        self.content = self.home / "content"  # its DVC remote
        self._git = GitRepository(self.folder)

    @property
    def exists(self) -> bool:
        """Whether anything was ever added."""
        return (self.folder / ".git").is_dir()

    # -- read

    def find(self, dataset: DatasetReference) -> DataVersion | None:
        """The version that a reference means: `name@v2`, `name@<commit>`, or the newest of `name` or `name@main`.

        None if there is no dataset of this name, or all of its versions are deleted.

        Raises:
            DatasetNotFound: the dataset has other versions, but not this one.
        """
        versions = self.list_versions(dataset.name)
        if not versions:
            return None
        wanted = dataset.revision
        if wanted is None or wanted in NEWEST:
            return versions[-1]
        number = read_version(wanted)
        for version in versions:
            if version.number == number or (number is None and len(wanted) >= 7 and version.commit.startswith(wanted)):
                return version
        known = ", ".join(version.version for version in versions)
        was_deleted = ", which was deleted" if number in self._read_refs().deleted.get(dataset.name, ()) else ""
        raise DatasetNotFound(f"dataset {dataset} is not a version of {dataset.name}{was_deleted}; it has {known}")

    def list_versions(self, name: str) -> list[DataVersion]:
        """All versions of a dataset, oldest first; none if there is no such dataset."""
        commits = self._read_refs().tags.get(name, {}) if self.exists else {}
        return sorted(self._read([*commits.values()]), key=lambda version: version.number)

    def list_all(self) -> list[DataVersion]:
        """All versions of all datasets."""
        tags = self._read_refs().tags if self.exists else {}
        return self._read([commit for commits in tags.values() for commit in commits.values()])

    def list_newest(self) -> list[DataVersion]:
        """The newest version of each dataset, the one that was added last first."""
        tags = self._read_refs().tags if self.exists else {}
        newest = self._read([commits[max(commits)] for commits in tags.values()])
        return sorted(newest, key=lambda version: (version.created_at, version.name), reverse=True)

    def locate(self, version: DataVersion) -> Path:
        """The file of a version, which is immutable and read-only."""
        return self._place(version.md5)

    # -- write

    def publish(
        self,
        staged: Path,
        wanted: DataVersion,
        may_add: Callable[[DataVersion], bool] = lambda before: True,
        before_visible: Callable[[DataVersion], None] = lambda version: None,
    ) -> Published:
        """Make a file a version of the dataset `wanted.name`, unless a version has the same content.

        Args:
            staged: the file, on the disk of the state folder; it is moved.
            wanted: what is recorded of it; number, commit and, for a name that exists, the owner are set here.
            may_add: whether a dataset whose newest version this is may get another one.
            before_visible: called with the complete version just before others can see it.

        Raises:
            NameTaken: `may_add` said no.
            InvalidDataset: another file with the same MD5 was added.
            DiskFull: there is no space for it.
        """
        with self._writing():
            versions = self.list_versions(wanted.name)
            if versions and not may_add(versions[-1]):
                raise name_taken(wanted.name)
            for version in versions:
                if (version.sha256, version.suffix) == (wanted.sha256, wanted.suffix):
                    before_visible(version)
                    return Published(version, False)
            self._check_content(wanted)
            numbers = {version.number for version in versions} | self._read_refs().deleted.get(wanted.name, set())
            owner = versions[-1].owner if versions else wanted.owner
            version = replace(wanted, number=max(numbers, default=0) + 1, owner=owner)
            self._place_file(staged, version.md5)
            version = replace(version, commit=self._commit(version, versions[-1].commit if versions else None))
            before_visible(version)
            self._git.update(f"create {TAGS}{version.reference} {version.commit}")
            return Published(version, True)

    def remove(self, versions: Sequence[DataVersion]) -> None:
        """Delete versions and, once no other version has them, their files. Their numbers are not given again."""
        with self._writing():
            there = self._read_refs().tags
            gone = [version for version in versions if version.number in there.get(version.name, {})]
            base = self._git.run("rev-parse", "refs/heads/main")
            marks = [f"create {DELETED}{version.reference} {base}" for version in gone]
            self._git.update(*marks, *(f"delete {TAGS}{version.reference}" for version in gone))
            _refs.pop(self.folder, None)
            self._remove_unused()
            self._git.forget_unnamed()
            for version in gone:
                _records.pop((self.folder, version.commit), None)

    # -- internal

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Be the only writer, on a registry that exists and is tidy."""
        self.home.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.home / "lock", timeout=LOCK_SECONDS):
                if not self.exists:
                    self._create()
                self._git.tidy()
                _refs.pop(self.folder, None)
                if self._remove_unused():
                    self._git.forget_unnamed()
                try:
                    yield
                finally:
                    _refs.pop(self.folder, None)
        except Timeout as error:
            raise StackError("the registry of added data is busy; try again later") from error

    def _create(self) -> None:
        store = _REMOTE.format(_quote(str(self.content)))
        files = {
            ".dvc/config": f"[core]\n    remote = store\n{_REMOTE.format('../../content')}",
            ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n",
        }
        # The absolute path is what DVC needs to read a tag; it is not committed, as that of the default registry.
        self._git.create(files, {".dvc/config.local": store})
        (self.content / "files/md5").mkdir(parents=True, exist_ok=True)

    def _commit(self, version: DataVersion, parent: str | None) -> str:
        pointer = {"outs": [{"md5": version.md5, "size": version.size, "hash": "md5", "path": version.file}]}
        files = {
            ".dvc/config": (self.folder / ".dvc/config").read_text(encoding="utf-8"),
            f"{version.file}.dvc": yaml.safe_dump(pointer, sort_keys=False),
            RECORD: version.to_json(),
        }
        return self._git.commit(files, f"{version.reference}", parent or self._git.run("rev-parse", "refs/heads/main"))

    def _place_file(self, staged: Path, md5: str) -> None:
        target = self._place(md5)
        if target.exists():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        staged.chmod(0o400)
        sync_path(staged)
        staged.rename(target)
        sync_path(target.parent)

    def _place(self, md5: str) -> Path:
        """Where DVC's remotes keep a file."""
        return self.content / "files/md5" / md5[:2] / md5[2:]

    def _check_content(self, wanted: DataVersion) -> None:
        for version in self.list_all():
            if version.md5 == wanted.md5 and version.sha256 != wanted.sha256:
                raise InvalidDataset(
                    f"file: its MD5 {wanted.md5} is that of another file in the registry, {version.name}"
                )

    def _remove_unused(self) -> int:
        """Remove the files that no version has; returns how many."""
        versions = self.list_all()
        if len(versions) < sum(map(len, self._read_refs().tags.values())):  # one can't be read: its file stays
            return 0
        used = {self._place(version.md5) for version in versions}
        unused = [path for path in self.content.glob("files/md5/*/*") if path not in used]
        for path in unused:
            path.unlink(missing_ok=True)
        return len(unused)

    def _read(self, commits: list[str]) -> list[DataVersion]:
        known = {commit: _records.get((self.folder, commit)) for commit in commits}
        found = {commit: version for commit, version in known.items() if version is not None}
        missing = [commit for commit in commits if commit not in found]
        if len(_records) + len(missing) > MOST_CACHED:
            _records.clear()
        for commit, content in self._git.read_files(missing, RECORD):
            try:
                found[commit] = DataVersion.from_json(content, commit)
            except (ValueError, TypeError, KeyError) as error:
                logger.warning("%s of commit %s in %s can't be read: %s", RECORD, commit, self.folder, error)
                continue
            _records[self.folder, commit] = found[commit]
        return [found[commit] for commit in commits if commit in found]

    def _read_refs(self) -> _Refs:
        before = time.time()
        stamp = self._stamp()
        known = _refs.get(self.folder)
        if known is not None and known[0] == stamp:
            return known[1]
        refs = _parse(self._git.read_refs())
        if before - max(stamp) / 1e9 > FRESH_SECONDS and self._stamp() == stamp:
            _refs[self.folder] = stamp, refs
        return refs

    def _stamp(self) -> Stamp:
        """Changes whenever a tag is made or removed."""
        places = (self.folder / ".git" / name for name in ("refs/tags", "packed-refs", "refs"))
        return tuple(_changed_at(place) for place in places)


def _changed_at(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _parse(refs: dict[str, str]) -> _Refs:
    tags: dict[str, dict[int, str]] = {}
    deleted: dict[str, set[int]] = {}
    for ref, commit in refs.items():
        label = ref.removeprefix(TAGS).removeprefix(DELETED)
        name, _, version = label.rpartition(MARK)
        number = read_version(version)
        if number is None:  # a tag of a person's
            continue
        if ref.startswith(TAGS):
            tags.setdefault(name, {})[number] = commit
        else:
            deleted.setdefault(name, set()).add(number)
    return _Refs(tags, deleted)


def _quote(value: str) -> str:
    """As `tasks.dataset_registry.quote_value`: unquoted, a comma makes a list and `#` starts a comment."""
    mark = next((mark for mark in ('"', "'") if mark not in value), "'''")
    return f"{mark}{value}{mark}"


def name_taken(name: str) -> NameTaken:
    """The error for a name that is another key's."""
    return NameTaken(f"name {name!r} is a dataset of another key; choose another name")


def may_see(version: DataVersion, owner: UUID | None) -> bool:
    """Whether an owner sees a version; None sees all of them, as of jobs."""
    return owner is None or version.owner == owner
