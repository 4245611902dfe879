"""Prepares an attempt to resume from the job's last checkpoint, on this machine's disk or in the shared store."""

import logging
from pathlib import Path

from jobs.lifecycle.attempts import HOST
from jobs.settings import Settings
from jobs.shared_store import SharedStore
from jobs.storage.events import find_last_checkpoint
from sft.errors import StackError
from tasks.checkpoint_store import CheckpointSender, fetch_newest, find_last_step
from tasks.journal import Journal

logger = logging.getLogger(__name__)


def check_store(settings: Settings) -> None:
    """Check the store, if there is one, before anything is spent. Raises StoreRefused if it is misconfigured."""
    if (store := SharedStore.find(settings)) is None:
        return
    try:
        store.check()
    except StackError as error:  # training continues without it; fetching waits for it
        logger.warning("%s", error)


def prepare_checkpoints(journal: Journal, directory: Path, needs_best: bool) -> None:
    """Fetch the newest checkpoint if the store has a later one, and have new ones sent there.

    If training will start at an earlier step than a reported checkpoint, an event and the log say why.

    Args:
        directory: of the job's checkpoints on this machine.
        needs_best: the best checkpoint so far is needed too.
    """
    store = SharedStore.find(journal.settings)
    if store is not None:
        if journal.attempt.number > 1:
            fetch_newest(store, journal.job_id, directory, needs_best)
        journal.sender = CheckpointSender(
            store, journal.job_id, journal.attempt.publishing, journal.spec.config.save_total_limit, journal.on_stored
        )
    if journal.attempt.number > 1:
        _tell_of_loss(journal, directory, needs_best, store)


def _tell_of_loss(journal: Journal, directory: Path, needs_best: bool, store: SharedStore | None) -> None:
    with journal.attempt.writing() as connection:
        last = find_last_checkpoint(connection, journal.job_id)
    if last is None:
        return
    step = find_last_step(directory, needs_best)
    if step >= last.step:
        return
    reason = _explain(last.host, store)
    logger.warning("Training restarts at step %s, though step %s had a checkpoint: %s", step, last.step, reason)
    journal.record("restart", {"step": step, "reported_step": last.step, "host": last.host, "reason": reason})


def _explain(host: str | None, store: SharedStore | None) -> str:
    if host in (None, HOST):
        lost = "it is damaged, or not on this host any more"
        return f"{lost}, and had not reached the store {store.url}" if store else lost
    if store is None:
        return f"it is on the disk of {host}; set TUNEYARD_STORE so that checkpoints outlive their machine"
    return f"it was lost with {host}, or is there, and had not reached the store {store.url}"
