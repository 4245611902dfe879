"""`FetchedAdapters`: the files of the adapters that answers are generated with, in the generation process's folder."""

import os
import shutil
from collections import Counter, OrderedDict
from pathlib import Path
from threading import Lock
from typing import Any
from uuid import UUID, uuid4

from jobs.settings import Settings
from jobs.shared_store import SharedStore, list_stored_checkpoints, owner_of
from jobs.store_lists import Damaged, Kept
from sft.checkpoints.folders import MANIFEST, is_complete
from sft.errors import ModelNotFound, StackError
from sft.files.disk import raising_disk_full
from tasks.model import locate_adapter

MOST_FOLDERS = 12  # kept; the one used longest ago is removed for another
SUFFIXES = (".json", ".jinja", ".txt", ".model", ".safetensors")  # of adapter and tokenizer; others resume a training


class FetchedAdapters:
    """Adapters by what names them. Thread-safe: who waits for a registry or a store holds up no other adapter.

    A checkpoint's files are linked, so that they stay when the job removes the checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._found: OrderedDict[str, tuple[Path, Path]] = OrderedDict()  # own folder, and the adapter's
        self._uses: Counter[Path] = Counter()
        self._fetching: dict[str, Lock] = {}
        self._lock = Lock()

    def fetch(
        self, reference: str, checkpoint: dict[str, Any] | None, settings: Settings, created: int | None = None
    ) -> Path:
        """The folder of an adapter, which stays until `release`.

        Args:
            reference: `models:/NAME/VERSION`, or another name of the checkpoint.
            checkpoint: its `job_id` and `step`, and `folder`, None if it is in the store.
            created: when it was: the registry gives the versions of a deleted adapter again.

        Raises:
            ModelNotFound: it is gone.
            StackError: registry or store can't be reached.
        """
        key = f"{reference} {_date(checkpoint) if checkpoint else created}"
        with self._lock:
            fetching = self._fetching.setdefault(key, Lock())
        with fetching:
            if adapter := self._take(key):
                return adapter
            place = self._folder / f"adapter-{uuid4().hex}"
            place.mkdir()
            try:
                found = _link(checkpoint, settings, place) if checkpoint else locate_adapter(reference, settings, place)
            except BaseException:
                shutil.rmtree(place, ignore_errors=True)
                with self._lock:
                    self._fetching.pop(key, None)
                raise
            return self._add(key, place, found)

    def release(self, adapter: Path | None) -> None:
        """End one use of an adapter."""
        if adapter is not None:
            with self._lock:
                self._uses[adapter] -= 1

    def _take(self, key: str) -> Path | None:
        with self._lock:
            if key not in self._found:
                return None
            self._found.move_to_end(key)
            adapter = self._found[key][1]
            self._uses[adapter] += 1
            return adapter

    def _add(self, key: str, place: Path, adapter: Path) -> Path:
        with self._lock:
            self._found[key] = (place, adapter)
            self._uses[adapter] += 1
            for other, (folder, unused) in [*self._found.items()]:
                if len(self._found) > MOST_FOLDERS and self._uses[unused] <= 0:
                    del self._found[other], self._uses[unused]
                    self._fetching.pop(other, None)
                    shutil.rmtree(folder, ignore_errors=True)
        return adapter


def _date(checkpoint: dict[str, Any]) -> int:
    """When it was written: a job that goes back to an earlier step writes the later ones again."""
    if checkpoint["folder"] is None:
        return 0
    try:
        return (Path(checkpoint["folder"]) / MANIFEST).stat().st_mtime_ns
    except FileNotFoundError as error:
        raise _gone(checkpoint) from error


def _link(checkpoint: dict[str, Any], settings: Settings, place: Path) -> Path:
    if checkpoint["folder"] is None:
        return _download(checkpoint, settings, place)
    folder = Path(checkpoint["folder"])
    if not is_complete(folder):
        raise _gone(checkpoint)
    try:
        for path in sorted(folder.rglob("*")):
            if path.suffix in SUFFIXES and path.is_file():
                target = place / path.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                _link_file(path, target)
        if not is_complete(folder):  # a checkpoint is removed by renaming its folder: then some files may lack
            raise _gone(checkpoint)
    except FileNotFoundError as error:
        raise _gone(checkpoint) from error
    return place


def _link_file(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or another user's file
        with raising_disk_full(target.parent, "the checkpoint", path.stat().st_size):
            shutil.copyfile(path, target)


def _download(checkpoint: dict[str, Any], settings: Settings, place: Path) -> Path:
    job_id, store = UUID(checkpoint["job_id"]), SharedStore.find(settings)
    kept = list_stored_checkpoints(store, job_id).get(checkpoint["step"]) if store else None
    if store is None or kept is None:
        raise _gone(checkpoint)
    wanted = {name: facts for name, facts in kept.files.items() if name.endswith(SUFFIXES)}
    try:
        with raising_disk_full(place, "the checkpoint", sum(size for _, size in wanted.values())):
            store.fetch(owner_of(job_id), Kept(kept.url, kept.time, wanted), place)
    except Damaged as error:
        raise StackError(f"the checkpoint can't be fetched: {error}") from error
    return place


def _gone(checkpoint: dict[str, Any]) -> ModelNotFound:
    return ModelNotFound(
        f"The checkpoint of step {checkpoint['step']} of job {checkpoint['job_id']} was removed; the job's checkpoints "
        "say which there are"
    )
