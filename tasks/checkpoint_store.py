"""Checkpoints in the shared store: uploaded while a job trains, fetched where it resumes."""

import contextvars
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid4

from sqlalchemy.exc import SQLAlchemyError
from tenacity import retry_if_exception_type

from jobs.errors import StoreRefused
from jobs.lifecycle.attempts import Superseded
from jobs.retrying import patient
from jobs.shared_store import SharedStore, checkpoint_name, list_stored_checkpoints, owner_of
from jobs.store_lists import Damaged, Kept
from sft.checkpoints.best import find_best
from sft.checkpoints.folders import (
    MANIFEST,
    STATE,
    find_newest_checkpoint,
    is_whole,
    list_checkpoints,
    publish_checkpoint,
    stage_checkpoint,
)
from sft.errors import StackError
from sft.files.disk import raising_disk_full
from sft.files.publication import Publishing
from tasks.store_waits import PATIENCE_SECONDS, tell_of_wait

logger = logging.getLogger(__name__)

WAITING = ".sending"  # in the checkpoints' folder: links to the files that are to be sent


class CheckpointSender:
    """Uploads checkpoints from a separate thread, each after it was sealed on this machine.

    A store that is down or full delays no step and fails no job: a warning is logged once, and the newest checkpoint is
    sent as soon as the store accepts it. Older ones that it has overtaken are skipped.

    Args:
        limit: number of checkpoints to keep in the store, as on the disk, in addition to the best one so far.
        on_stored: called from the thread with step, bytes sent and seconds once a checkpoint is in the store.
    """

    def __init__(
        self,
        store: SharedStore,
        job_id: UUID,
        publishing: Publishing,
        limit: int,
        on_stored: Callable[[int, int, float], None] = lambda step, sent, seconds: None,
    ) -> None:
        self._store = store
        self._job_id = job_id
        self._owner = owner_of(job_id)
        self._publishing = publishing
        self._limit = limit
        self._on_stored = on_stored
        self._newest: Path | None = None  # folder of links
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._given_up = threading.Event()
        self._tries = patient(
            retry_if_exception_type((StackError, StoreRefused, SQLAlchemyError)), tell=self._tell, sleep=self._pause
        )
        run_as_here = contextvars.copy_context().run  # so that Prefect assigns the thread's log lines to this run
        self._thread = threading.Thread(target=run_as_here, args=(self._run,), name="checkpoints", daemon=True)
        self._thread.start()

    def add(self, folder: Path) -> None:
        """Queue a checkpoint for sending; returns at once. Its folder may be deleted from now on."""
        linked = folder.parent / WAITING / f"{folder.name}-{uuid4().hex}"
        try:
            shutil.copytree(folder, linked, copy_function=_link)
        except OSError as error:  # deleted meanwhile, or the disk is full: a later one will be sent
            logger.warning("%s can't be kept for sending to the store (%s)", folder.name, error.strerror or error)
            shutil.rmtree(linked, ignore_errors=True)
            return
        with self._lock:
            overtaken, self._newest = self._newest, linked
        if overtaken is not None:
            shutil.rmtree(overtaken, ignore_errors=True)
        self._wake.set()

    def close(self, seconds: float) -> bool:
        """Send the waiting checkpoints within this time; False if the newest one is not in the store."""
        self._closing.set()
        self._wake.set()
        self._thread.join(seconds)
        self._given_up.set()
        is_sent = not self._thread.is_alive() and self._newest is None
        if not is_sent and seconds:
            logger.warning("The newest checkpoint was not sent to the store %s within %.0f s", self._store.url, seconds)
        return is_sent

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            while (folder := self._newest) is not None:
                try:
                    self._tries(self._send_newest)
                except _CheckpointsGivenUp:
                    return
                except Superseded:  # the heartbeat ends the process
                    return
                except Exception:
                    logger.exception("%s was not sent to the store", folder.name)
                    self._drop(folder)
            if self._closing.is_set():
                return

    def _send_newest(self) -> None:
        """Send the newest waiting checkpoint, which may be a different one at each try."""
        if self._given_up.is_set():
            raise _CheckpointsGivenUp
        with self._lock:
            folder = self._newest
        if folder is None:
            return
        try:
            self._send(folder)
        except FileNotFoundError:  # overtaken while it was sent
            if self._newest is folder:
                raise
            return
        self._drop(folder)

    def _drop(self, folder: Path) -> None:
        with self._lock:
            if self._newest is folder:
                self._newest = None
        shutil.rmtree(folder, ignore_errors=True)

    def _send(self, folder: Path) -> None:
        began = time.monotonic()
        step, best = _step_of(folder.name.rpartition("-")[0]), _best_step(folder)
        sent = self._send_best(folder.parents[1], best) if best not in (None, step) else 0
        sent += self._put(folder, step)
        self._rotate(step, best)
        self._on_stored(step, sent, time.monotonic() - began)

    def _send_best(self, directory: Path, step: int | None) -> int:
        """Send the best checkpoint so far if the store lacks it; one deleted in the meantime has been overtaken."""
        folder = directory / f"checkpoint-{step}"
        try:
            is_there = step is None or self._store.get(self._owner, checkpoint_name(step)) is not None
        except Damaged:
            is_there = False
        if step is None or is_there or not is_whole(folder):
            return 0
        try:
            return self._put(folder, step)
        except FileNotFoundError:
            return 0

    def _rotate(self, newest: int, best: int | None) -> None:
        """Delete the oldest beyond the limit, and those of later steps, left by a run that had to go back."""
        stored = [*list_stored_checkpoints(self._store, self._job_id)]
        others = [step for step in stored if step < newest and step != best]
        kept = {newest, best, *others[len(others) - max(0, self._limit - 1 - (best in stored and best != newest)) :]}
        if forgotten := [checkpoint_name(step) for step in stored if step not in kept]:
            self._store.forget(self._owner, forgotten, self._publishing)

    def _put(self, folder: Path, step: int) -> int:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        digests = {name: str(facts["sha256"]) for name, facts in listed.items()}
        return self._store.put(self._owner, checkpoint_name(step), folder, self._publishing, digests)

    def _tell(self, why: str) -> None:
        logger.warning("The store does not take checkpoints (%s); training continues, and they are sent later", why)

    def _pause(self, seconds: float) -> None:
        if self._given_up.wait(seconds):
            raise _CheckpointsGivenUp


class _CheckpointsGivenUp(Exception):
    """The waiting checkpoints are not sent any more."""


def fetch_newest(store: SharedStore, job_id: UUID, directory: Path, needs_best: bool) -> int | None:
    """Fetch the newest complete checkpoint if the store has a later one than this machine; returns its step, or None.

    With `needs_best` the best checkpoint so far is fetched too, as early stopping restores it. Raises as `SharedStore`
    does, after waiting for a store that is down.
    """
    tries = patient(retry_if_exception_type(StackError), PATIENCE_SECONDS, tell=tell_of_wait)
    shutil.rmtree(directory / WAITING, ignore_errors=True)
    stored = tries(list_stored_checkpoints, store, job_id)
    here = find_newest_checkpoint(directory, needs_best)
    for step in sorted(stored, reverse=True):
        if here is not None and _step_of(here.name) >= step:
            return None
        try:
            folder = tries(_fetch, store, job_id, stored[step], directory, step)
            if needs_best and (best := _best_step(folder)) not in (None, step) and best in stored:
                tries(_fetch, store, job_id, stored[best], directory, best)
        except Damaged as error:
            logger.warning("Skipped a checkpoint in the store: %s", error)
            continue
        if find_newest_checkpoint(directory, needs_best) == folder:
            logger.info("Fetched the checkpoint of step %s from the store", step)
            return step
    return None


def _fetch(store: SharedStore, job_id: UUID, kept: Kept, directory: Path, step: int) -> Path:
    target = directory / f"checkpoint-{step}"
    if is_whole(target):
        return target
    staged = stage_checkpoint(directory, step)
    with raising_disk_full(directory, "the checkpoint", kept.bytes):
        store.fetch(owner_of(job_id), kept, staged)
    return publish_checkpoint(staged)


def find_last_step(directory: Path, needs_best: bool) -> int:
    """The step that training would resume from on this machine; 0 without a checkpoint."""
    found = find_newest_checkpoint(directory, needs_best) if list_checkpoints(directory) else None
    return _step_of(found.name) if found else 0


def _best_step(folder: Path) -> int | None:
    best = find_best(json.loads((folder / STATE).read_text(encoding="utf-8"))["log_history"])
    return best and best.step


def _step_of(name: str) -> int:
    return int(name.rpartition("-")[2])


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)
