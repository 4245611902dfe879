"""Merges a registered adapter into its base model: a merge that fails leaves the job its adapter."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tenacity import retry_if_exception_type

from jobs.errors import StoreRefused
from jobs.lifecycle.attempts import Superseded
from jobs.retrying import patient
from jobs.sanitizing.log_lines import hide_passwords
from jobs.shared_store import MERGED, SharedStore, owner_of
from jobs.storage.events import count_deaths
from jobs.store_lists import Damaged
from sft.errors import StackError, is_out_of_memory, walk_causes
from tasks.causes import explain
from tasks.journal import Journal
from tasks.store_waits import PATIENCE_SECONDS, tell_of_wait

if TYPE_CHECKING:
    from sft.devices.launcher import DistributedSession
    from sft.training.model_card import Provenance
    from sft.training.session import TrainingSession

logger = logging.getLogger(__name__)

PHASE = "merging"
MOST_DEATHS = 2  # of processes that were killed while they merged, as a system does that is out of memory
REMEDY = "the adapter is registered; merge it on a machine with more memory, with `merge_and_unload` of PEFT"


class Merged(NamedTuple):
    """The folder of the merged model, or why there is none."""

    folder: Path | None
    error: str | None

    @property
    def warnings(self) -> list[str]:
        """A sentence for the job's result, if the merge failed."""
        return [f"the adapter was not merged into its base model: {self.error}"] if self.error else []


def merge(
    session: "TrainingSession | DistributedSession", journal: Journal, adapter_dir: Path, provenance: "Provenance"
) -> Merged:
    """Merge, put the merged model into the store if there is one, and record the event `merge`.

    Raises what another attempt at the job may mend, such as a database that is away.
    """
    merged = _try(session, journal, adapter_dir, provenance)
    for sentence in merged.warnings:
        logger.warning("%s", sentence)
    if merged.folder is not None:
        keep_merged(journal, merged.folder)
    path = str(merged.folder) if merged.folder else None
    journal.record("merge", {"merged_path": path, "error": merged.error})
    return merged


def _try(
    session: "TrainingSession | DistributedSession", journal: Journal, adapter_dir: Path, provenance: "Provenance"
) -> Merged:
    with journal.attempt.writing() as connection:
        deaths = count_deaths(connection, journal.job_id, PHASE)
    if deaths >= min(MOST_DEATHS, max(journal.settings.max_attempts - 1, 1)):
        return Merged(None, f"{deaths} processes were killed while merging, as when memory runs out; {REMEDY}")
    journal.enter(PHASE)
    try:
        return Merged(session.save_merged(adapter_dir, provenance), None)
    except Superseded:
        raise
    except Exception as error:
        cause = explain(error)
        if cause.is_worth_retrying:
            raise
        if any(map(is_out_of_memory, walk_causes(error))):
            return Merged(None, f"out of memory while merging; {REMEDY}")
        return Merged(None, hide_passwords(cause.message))


def keep_merged(journal: Journal, folder: Path) -> None:
    """Put the merged model into the store, if there is one; the job waits while the store is down."""
    if (store := SharedStore.find(journal.settings)) is None:
        return
    tries = patient(retry_if_exception_type(StackError), PATIENCE_SECONDS, tell=tell_of_wait)
    try:
        sent = tries(store.put, owner_of(journal.job_id), MERGED, folder, journal.attempt.publishing)
    except (OSError, StackError, StoreRefused, Damaged) as error:
        logger.warning("The merged model is in %s alone: %s", folder, error)
    else:
        logger.info("The merged model is in the store (%.1f MB sent)", sent / 1e6)
