"""Base models in the shared store: uploaded once by a machine that has them, fetched by those that lack them.

A job keeps using the files that its first attempt found: a machine whose model of that name differs fetches them.
"""

import fcntl
import fnmatch
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import UUID

from filelock import FileLock
from tenacity import retry_if_exception_type

from jobs.retrying import patient
from jobs.settings import Settings
from jobs.shared_store import SharedStore, hash_file, owner_of
from jobs.store_lists import Damaged, Files, Kept
from sft.errors import DiskFull, ModelNotFound, StackError
from sft.files.disk import measure_free, raising_disk_full
from sft.files.publication import Publishing, discard_folder, publish_folder
from sft.models.loading import HUB_FILES, find_model
from tasks.store_waits import PATIENCE_SECONDS, send_in_background, tell_of_wait

logger = logging.getLogger(__name__)

OWNER = "models"
OF_JOB = "base_model"  # in a job's place: the list of its model's files
CACHE = "base-models"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*")
_held: list[int] = []  # locks of the models in use, until this process ends


def locate_model(name: str, settings: Settings, job_id: UUID | None = None) -> Path:
    """Find a base model: the one recorded for the job, then as `find_model` does, then in the store by its name.

    Raises:
        ModelNotFound: listing the places searched.
        DiskFull: it does not fit into the cache's disk.
        StackError: the store stayed down, or its copy of the model is incomplete.
    """
    store = SharedStore.find(settings)
    if store is None:
        return find_model(name, settings.model_root, settings.allowed_model_roots)
    tries = patient(retry_if_exception_type(StackError), PATIENCE_SECONDS, tell=tell_of_wait)
    wanted = tries(_read_list, store, owner_of(job_id), OF_JOB) if job_id else None
    try:
        folder = find_model(name, settings.model_root, settings.allowed_model_roots)
        if wanted is None or digest_files(folder, settings.home) == wanted.files:
            return folder
        logger.info("Base model %s here is not the one that this job began with; fetching that one", name)
    except ModelNotFound as error:
        if wanted is None and type(error) is ModelNotFound and is_name(name):
            wanted = tries(_read_list, store, OWNER, name)
        if wanted is None:
            raise type(error)(f"{error}. The store {store.url} has no such model either") from error
    return ModelCache(settings).fetch(store, wanted)


def is_name(name: str) -> bool:
    """Whether a model can be stored under this name; others are stored for their job only."""
    return _NAME.fullmatch(name) is not None


def send_model(name: str, folder: Path, settings: Settings, job_id: UUID, publishing: Publishing) -> None:
    """Put a base model into the store from a thread, and record it as the job's model; returns at once."""
    store = SharedStore.find(settings)
    if store is None or not settings.store_models:
        return

    def send() -> None:
        digests = {file: digest for file, (digest, _) in digest_files(folder, settings.home).items()}
        _send(store, name, folder, digests, job_id, publishing)

    send_in_background(f"Base model {name}", send)


def _send(
    store: SharedStore, name: str, folder: Path, digests: dict[str, str], job_id: UUID, publishing: Publishing
) -> None:
    if _read_list(store, owner_of(job_id), OF_JOB) is not None:
        return
    if sent := store.put_files(OWNER, folder, digests):
        logger.info("Base model %s is in the store (%.1f MB sent)", name, sent / 1e6)
    listed: Files = {file: (digest, (folder / file).stat().st_size) for file, digest in digests.items()}
    with publishing():
        store.write_list(owner_of(job_id), OF_JOB, listed)
        if is_name(name) and ((known := _read_list(store, OWNER, name)) is None or known.files != listed):
            store.write_list(OWNER, name, listed)


def _read_list(store: SharedStore, owner: str, name: str) -> Kept | None:
    """`store.get`; an unreadable list counts as absent, and is written again by a machine that has the files."""
    try:
        return store.get(owner, name)
    except Damaged as error:
        logger.warning("%s; continuing without it", error)
        return None


def digest_files(folder: Path, home: Path) -> Files:
    """SHA-256 and length of each of a model's files; cached in the state folder until a file changes."""
    kept_in = home / "digests" / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]}.json"
    known: dict[str, list[object]] = {}
    with suppress(OSError, ValueError):
        known = json.loads(kept_in.read_text(encoding="utf-8"))
    found: dict[str, list[object]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and any(fnmatch.fnmatch(path.name, pattern) for pattern in HUB_FILES):
            name, facts = path.relative_to(folder).as_posix(), path.stat()
            mark: list[object] = [facts.st_size, facts.st_mtime_ns]
            before = known.get(name)
            found[name] = before if before and before[:2] == mark else [*mark, hash_file(path)]
    if found != known:
        with suppress(OSError):  # it is hashed again the next time
            kept_in.parent.mkdir(parents=True, exist_ok=True)
            fresh = kept_in.with_suffix(f".{os.getpid()}")
            fresh.write_text(json.dumps(found), encoding="utf-8")
            fresh.rename(kept_in)
    return {name: (str(facts[2]), int(str(facts[0]))) for name, facts in found.items()}


class ModelCache:
    """Cache of fetched models by their content, in the state folder; those used longest ago are removed first."""

    def __init__(self, settings: Settings) -> None:
        self._root = settings.home / CACHE
        self._limit = settings.model_cache_bytes

    def fetch(self, store: SharedStore, kept: Kept) -> Path:
        """The folder of a model, fetched once for all jobs of this machine. Raises as `locate_model` does."""
        folder = self._root / _name(kept.files)
        self._root.mkdir(parents=True, exist_ok=True)
        use = os.open(self._root / f".{folder.name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(use, fcntl.LOCK_SH)  # nobody removes it from here on
        try:
            with FileLock(self._root / f".{folder.name}.fetch"):  # others that want it wait until it is here
                if not folder.is_dir():
                    self._make_room(kept.bytes, folder.name)
                    tries = patient(retry_if_exception_type(StackError), PATIENCE_SECONDS, tell=tell_of_wait)
                    tries(self._fetch, store, kept, folder)
            os.utime(folder)
        except BaseException:
            os.close(use)
            raise
        _held.append(use)
        return folder

    def _fetch(self, store: SharedStore, kept: Kept, folder: Path) -> None:
        logger.info("Fetching the base model from the store (%.1f MB)", kept.bytes / 1e6)
        with raising_disk_full(self._root, "the base model", kept.bytes), publish_folder(folder) as fresh:
            try:
                store.fetch(OWNER, kept, fresh)
            except Damaged as error:
                raise StackError(f"the base model can't be fetched: {error}; put it into the store again") from error

    def _make_room(self, wanted: int, name: str) -> None:
        """Remove models that no process uses, the one used longest ago first, until there is room."""
        others = sorted((path for path in self._root.iterdir() if path.is_dir() and path.name != name), key=_used_at)
        sizes = {path: _measure(path) for path in others}
        limit = shutil.disk_usage(self._root).total // 2 if self._limit is None else self._limit
        for path in others:
            if sum(sizes.values()) + wanted <= limit and measure_free(self._root) > wanted:
                return
            with _unused(self._root / f".{path.name}.lock") as is_unused:
                if is_unused:
                    logger.info("Removing base model %s from the cache, to make room", path.name)
                    discard_folder(path)
                    del sizes[path]
        if wanted > measure_free(self._root):
            raise DiskFull(
                f"no space left in {self._root}: the base model needs {wanted / 1e9:.1f} GB and "
                f"{measure_free(self._root) / 1e9:.1f} GB are free; free some, or set TUNEYARD_HOME to a folder on "
                "another disk"
            )


@contextmanager
def _unused(path: Path) -> Iterator[bool]:
    """Whether no process uses the model of this lock; during the block none can start to."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(lock)


def _name(files: Files) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:32]


def _used_at(folder: Path) -> float:
    return folder.stat().st_mtime


def _measure(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
